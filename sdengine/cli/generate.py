"""`sdengine generate`: images from a prompt."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from sdengine.result import Result, Step


def generate(
    prompt: Annotated[str, typer.Argument(help="What to show.")],
    negative: Annotated[
        str, typer.Option("--negative", "-n", metavar="TEXT", help="What to avoid.")
    ] = "",
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="PNG; a batch gets -1, -2, ...")
    ] = "out.png",
    seed: Annotated[int | None, typer.Option(help="0 to 2**64-1; random if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps, 1 to 1000.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, 0 to 100.")] = None,
    sampler: Annotated[str | None, typer.Option(help="See `sdengine samplers`.")] = None,
    schedule: Annotated[str | None, typer.Option(help="See `sdengine samplers`.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    batch: Annotated[int, typer.Option(help="Images; image i uses seed + i.")] = 1,
    bundle: Annotated[str, typer.Option(metavar="PATH", help="Bundle, or demo.")] = "demo",
    backend: Annotated[str, typer.Option(help="auto, openvino or torch.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make images from a prompt. Values not given are the bundle's defaults."""
    from sdengine.pipeline import load
    from sdengine.result import check_output

    check_output(output)
    with (
        load(bundle, backend=backend, precision=precision, threads=threads) as engine,
        progress_bar() as progress,
    ):
        result = engine.generate(
            prompt,
            negative,
            width=width,
            height=height,
            steps=steps,
            guidance_scale=guidance,
            sampler=sampler,
            schedule=schedule,
            seed=seed,
            batch_size=batch,
            progress=progress,
        )
    files = result.save(output)
    if as_json:
        print(json.dumps(describe(result, files)))
    else:
        for file, image_seed in zip(files, result.seeds, strict=True):
            print(f"{file} (seed {image_seed})")
        print(_summary(result), file=sys.stderr)


def describe(result: Result, files: list[Path]) -> dict[str, Any]:
    """Return what `--json` prints."""
    request = result.request
    return {
        "files": [str(file) for file in files],
        "seeds": list(result.seeds),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "guidance_scale": request.guidance_scale,
        "sampler": request.sampler,
        "schedule": request.schedule,
        "model": result.model,
        "backend": result.backend,
        "precision": result.precision,
        "timings": result.timings.to_dict(),
    }


def _summary(result: Result) -> str:
    timings = result.timings
    stages = {
        "load": timings.load_ms,
        "text encoder": timings.text_encoder_ms,
        "U-Net": timings.unet_ms,
        "VAE decoder": timings.vae_decoder_ms,
        "other": timings.other_ms,
    }
    shown = ", ".join(f"{name} {value:.1f} ms" for name, value in stages.items())
    return f"{shown}; total {timings.total_ms:.1f} ms ({result.backend}, {result.precision})"


@contextmanager
def progress_bar() -> Iterator[Callable[[Step], None] | None]:
    """Show a bar on standard error when that is a terminal; give None otherwise."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("loading", total=None)

        def show(step: Step) -> None:
            progress.update(
                bar, description="generating", completed=step.index + 1, total=step.total
            )

        yield show
