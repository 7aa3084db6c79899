"""`sdengine convert`: a single-file checkpoint into a folder."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sdengine.cli import checkpoint_options as options
from sdengine.cli.terminal import progress_bar


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
) -> None:
    """Write a checkpoint's networks as a folder that diffusers and `sdengine build` read."""
    from sdengine.checkpoints import convert as run_convert
    from sdengine.checkpoints import load_checkpoint

    with progress_bar("reading") as progress:
        folder = run_convert(
            source,
            output,
            dtype=dtype,
            variant=variant,
            base=base,
            vae=vae,
            family=family,
            prediction_type=prediction_type,
            progress=progress,
        )
    print(folder)
    opened = load_checkpoint(
        source,
        variant=variant,
        base=base,
        vae=vae,
        family=family,
        prediction_type=prediction_type,
    )
    for line in options.assumed_lines(opened.guesses):
        print(line, file=sys.stderr)
