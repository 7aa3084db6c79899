"""Checkpoint options: those of every command that reads a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdengine.errors import ConfigError

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
TinyVae = Annotated[
    str | None,
    typer.Option(
        "--tiny-vae", metavar="PATH", help="A tiny autoencoder (TAESD) for previews and drafts."
    ),
]
Family = Annotated[
    str | None,
    typer.Option(help="Refuse other families: sd1, sd2, sdxl, sdxl-refiner; or sd15, lcm..."),
]
PredictionType = Annotated[
    str | None,
    typer.Option(help="epsilon, v_prediction or sample; what the checkpoint says if not given."),
]

Scheduler = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Replace a key of the scheduler's file, as clip_sample=false; may be repeated.",
    ),
]


def open_if_changed(
    path: str,
    variant: str | None,
    base: str | None,
    vae: str | None,
    tiny_vae: str | None,
    family: str | None,
    prediction_type: str | None,
    scheduler: list[str] | None,
) -> str | Checkpoint:
    """Open a checkpoint if an option changes how it is read; else leave that to others."""
    changes = scheduler_changes(scheduler)
    given = (variant, base, vae, tiny_vae, family, prediction_type)
    if not changes and all(option is None for option in given):
        return path
    from sdengine.checkpoints import load_checkpoint

    return load_checkpoint(
        path,
        variant=variant,
        base=base,
        vae=vae,
        tiny_vae=tiny_vae,
        family=family,
        prediction_type=prediction_type,
        scheduler=changes,
    )


def scheduler_changes(given: list[str] | None) -> dict[str, Any]:
    """Read KEY=VALUE; a value is JSON, or else the text itself.

    Raises:
        ConfigError: there is no "=".
    """
    changes: dict[str, Any] = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError.for_field("--scheduler", text, "KEY=VALUE, as clip_sample=false")
        try:
            changes[key] = json.loads(value)
        except (ValueError, RecursionError):
            changes[key] = value
    return changes


def assumed_lines(guesses: Iterable[Guess | GuessEntry]) -> Iterator[str]:
    """Say what a checkpoint did not say and was assumed, with the option that says it."""
    told = [f"{guess.what} {guess.value} ({guess.option})" for guess in guesses]
    if told:
        yield f"assumed: {', '.join(told)}; `sdengine inspect` tells why"
