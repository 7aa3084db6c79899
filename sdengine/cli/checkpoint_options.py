"""Checkpoint options: those of every command that reads a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sdengine.bundle.manifest import GuessEntry
    from sdengine.checkpoints import Checkpoint
    from sdengine.checkpoints.guesses import Guess

Variant = Annotated[str | None, typer.Option(help="Which of a folder's weights, such as fp16.")]
Base = Annotated[
    str | None,
    typer.Option(
        "--base", metavar="PATH", help="Take all but the U-Net, which is to be read, from this."
    ),
]
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
    base: str | None,
    vae: str | None,
    family: str | None,
    prediction_type: str | None,
) -> str | Checkpoint:
    """Open a checkpoint if an option changes how it is read; else leave that to others."""
    if all(given is None for given in (variant, base, vae, family, prediction_type)):
        return path
    from sdengine.checkpoints import load_checkpoint

    return load_checkpoint(
        path,
        variant=variant,
        base=base,
        vae=vae,
        family=family,
        prediction_type=prediction_type,
    )


def assumed_lines(guesses: Iterable[Guess | GuessEntry]) -> Iterator[str]:
    """Say what a checkpoint did not say and was assumed, with the option that says it."""
    told = [f"{guess.what} {guess.value} ({guess.option})" for guess in guesses]
    if told:
        yield f"assumed: {', '.join(told)}; `sdengine inspect` tells why"
