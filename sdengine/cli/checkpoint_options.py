"""Checkpoint options: those of every command that reads a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdengine.checkpoints import Checkpoint

Variant = Annotated[str | None, typer.Option(help="Which of a folder's weights, such as fp16.")]
Vae = Annotated[
    str | None,
    typer.Option("--vae", metavar="PATH", help="Take the autoencoder of this file or folder."),
]
Family = Annotated[
    str | None,
    typer.Option(help="Refuse other families: sd1, sd2, sdxl, sdxl-refiner; or sd15, lcm..."),
]
PredictionType = Annotated[
    str | None,
    typer.Option(help="epsilon, v_prediction or sample; what the checkpoint says if not given."),
]


def open_if_changed(
    path: str,
    variant: str | None,
    vae: str | None,
    family: str | None,
    prediction_type: str | None,
) -> str | Checkpoint:
    """Open a checkpoint if an option changes how it is read; else leave that to others."""
    if variant is None and vae is None and family is None and prediction_type is None:
        return path
    from sdengine.checkpoints import load_checkpoint

    return load_checkpoint(
        path, variant=variant, vae=vae, family=family, prediction_type=prediction_type
    )
