"""`sdengine convert`: a single-file checkpoint into a folder."""

from __future__ import annotations

from typing import Annotated

import typer


def convert(
    source: Annotated[str, typer.Argument(help="A .safetensors, .ckpt, .pt, .pth or .bin file.")],
    output: Annotated[str, typer.Option("--output", "-o", metavar="FOLDER", help="New folder.")],
    dtype: Annotated[str, typer.Option(help="Of the weights written: fp16, bf16, fp32.")] = "fp16",
    vae: Annotated[
        str | None, typer.Option(metavar="FILE", help="Take the autoencoder of this file.")
    ] = None,
    family: Annotated[
        str | None, typer.Option(help="sd15, sd21, sdxl, sdxl-refiner or lcm; told from the names.")
    ] = None,
    prediction_type: Annotated[
        str | None, typer.Option(help="epsilon or v_prediction; the family's own if not given.")
    ] = None,
) -> None:
    """Write a single file's networks as a folder that diffusers and `sdengine build` read."""
    from sdengine.checkpoints.convert import convert as run_convert
    from sdengine.cli.build import progress_bar

    with progress_bar() as progress:
        folder = run_convert(
            source,
            output,
            dtype=dtype,
            vae=vae,
            family=family,
            prediction_type=prediction_type,
            progress=progress,
        )
    print(folder)
