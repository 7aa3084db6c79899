"""`sdengine convert`: a single-file checkpoint into a folder."""

from __future__ import annotations

from typing import Annotated

import typer

from sdengine.cli import checkpoint_options as options
from sdengine.cli.terminal import note, progress_bar, say


def convert(
    source: Annotated[
        str, typer.Argument(help="A .safetensors, .ckpt, .pt, .pth or .bin file, or a folder.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="New folder.")],
    dtype: Annotated[str, typer.Option(help="Of the weights written: fp16, bf16, fp32.")] = "fp16",
    variant: options.Variant = None,
    base: options.Base = None,
    vae: options.Vae = None,
    family: options.Family = None,
    prediction_type: options.PredictionType = None,
    scheduler: options.Scheduler = None,
) -> None:
    """Write a checkpoint's networks as a folder that diffusers and `sdengine build` read."""
    with progress_bar("reading") as progress:
        from sdengine.checkpoints import convert as run_convert
        from sdengine.checkpoints import load_checkpoint

        folder = run_convert(
            source,
            output,
            dtype=dtype,
            variant=variant,
            base=base,
            vae=vae,
            family=family,
            prediction_type=prediction_type,
            scheduler=options.scheduler_changes(scheduler),
            progress=progress,
        )
    say(str(folder))
    opened = load_checkpoint(
        source,
        variant=variant,
        base=base,
        vae=vae,
        family=family,
        prediction_type=prediction_type,
        scheduler=options.scheduler_changes(scheduler),
    )
    for line in options.assumed_lines(opened.guesses):
        note(line)
