"""`sdengine generate`: images from a prompt, or again from an image's metadata."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sdengine.cli.terminal import parse_bytes, progress_bar
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.cli.terminal import ProgressBar
    from sdengine.engine import Engine
    from sdengine.images.result import Result, Step


def generate(
    prompt: Annotated[
        list[str] | None, typer.Argument(help="What to show; several prompts give several images.")
    ] = None,
    negative: Annotated[
        str | None, typer.Option("--negative", "-n", metavar="TEXT", help="What to avoid.")
    ] = None,
    output: Annotated[
        str, typer.Option("--output", "-o", metavar="FILE", help="PNG; a batch gets -1, -2, ...")
    ] = "out.png",
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="PNG", help="Take everything not given from this image."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="0 to 2**64-1; random if not given.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampler steps, 1 to 1000.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale, 0 to 100.")] = None,
    sampler: Annotated[str | None, typer.Option(help="See `sdengine samplers`.")] = None,
    schedule: Annotated[str | None, typer.Option(help="See `sdengine samplers`.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images; image i uses seed + i.")] = None,
    guidance_rescale: Annotated[float | None, typer.Option(help="0 to 1.")] = None,
    eta: Annotated[float | None, typer.Option(help="Share of fresh noise, 0 to 1.")] = None,
    s_noise: Annotated[float | None, typer.Option(help="Factor on fresh noise.")] = None,
    s_churn: Annotated[float | None, typer.Option(help="Noise added before each step.")] = None,
    s_tmin: Annotated[float | None, typer.Option(help="Lowest noise level that churns.")] = None,
    s_tmax: Annotated[float | None, typer.Option(help="Highest noise level that churns.")] = None,
    variation_seed: Annotated[int | None, typer.Option(help="Seed of a second noise.")] = None,
    variation_strength: Annotated[
        float | None, typer.Option(help="0 to 1: how far to go over to the second noise.")
    ] = None,
    seed_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Take the noise of this image size.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option(help="cpu or cuda: whose random numbers to reproduce.")
    ] = None,
    emphasis: Annotated[
        str | None, typer.Option(help="original, no_norm, none or literal.")
    ] = None,
    clip_skip: Annotated[int | None, typer.Option(help="1 to 12, counted from the end.")] = None,
    original_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="SDXL: size of the original.")
    ] = None,
    target_size: Annotated[
        str | None, typer.Option(metavar="WxH", help="SDXL: size asked for.")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(metavar="LEFTxTOP", help="SDXL: where the crop begins.")
    ] = None,
    aesthetic_score: Annotated[float | None, typer.Option(help="Refiner, 0 to 100.")] = None,
    negative_aesthetic_score: Annotated[
        float | None, typer.Option(help="Refiner, 0 to 100.")
    ] = None,
    bundle: Annotated[str, typer.Option(metavar="PATH", help="Bundle, or demo.")] = "demo",
    backend: Annotated[
        str, typer.Option(help="auto, or a name such as native or triton.")
    ] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, bf16 or int8; with --from the image's own.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    low_memory: Annotated[
        bool, typer.Option("--low-memory", help="Free each network once it is done.")
    ] = False,
    memory: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="The most that a GPU's bundle may take, such as 8GiB."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make images from a prompt. Values not given are the bundle's defaults."""
    from sdengine.engine import load
    from sdengine.images.png import check_output

    memory_bytes = None if memory is None else parse_bytes(memory)

    given = {
        "prompt": _one_or_many(prompt),
        "negative_prompt": negative,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance,
        "sampler": sampler,
        "schedule": schedule,
        "width": width,
        "height": height,
        "batch_size": batch,
        "guidance_rescale": guidance_rescale,
        "eta": eta,
        "s_noise": s_noise,
        "s_churn": s_churn,
        "s_tmin": s_tmin,
        "s_tmax": s_tmax,
        "variation_seed": variation_seed,
        "variation_strength": variation_strength,
        "seed_width": _pair("seed-size", seed_size)[0],
        "seed_height": _pair("seed-size", seed_size)[1],
        "noise": noise,
        "emphasis": emphasis,
        "clip_skip": clip_skip,
        "original_size": _optional(_pair("original-size", original_size)),
        "target_size": _optional(_pair("target-size", target_size)),
        "crop": _optional(_pair("crop", crop)),
        "aesthetic_score": aesthetic_score,
        "negative_aesthetic_score": negative_aesthetic_score,
    }
    options: dict[str, Any] = {name: v for name, v in given.items() if v is not None}
    check_output(output)
    recorded = _recorded(source) if source is not None else None
    if recorded is not None:
        options = {**recorded.request_fields(), **options}
        precision = precision or recorded.precision
        threads = threads or recorded.threads
    if "prompt" not in options:
        raise ConfigError(
            "prompt: it is missing. Give a prompt, or an image with --from. See "
            "`sdengine generate --help`."
        )
    with (
        load(bundle, backend, precision or "auto", threads, low_memory, memory_bytes) as engine,
        progress_bar("loading", remaining=True) as bar,
    ):
        if recorded is not None:
            _warn_of_differences(recorded, engine)
        result = engine.generate(progress=_shown_by(bar), **options)
    files = result.save(output)
    if as_json:
        print(json.dumps(describe(result, files)))
    else:
        for file, image_seed in zip(files, result.seeds, strict=True):
            print(f"{file} (seed {image_seed})")
        print(_summary(result), file=sys.stderr)


def describe(result: Result, files: list[Path]) -> dict[str, Any]:
    """Return what `--json` prints."""
    return {
        "files": [str(file) for file in files],
        "seeds": list(result.seeds),
        **asdict(result.request),
        "model": result.model,
        "backend": result.backend,
        "precision": result.precision,
        "timings": result.timings.to_dict(),
    }


def _recorded(source: str) -> Any:
    from sdengine.images.metadata import read_metadata

    return read_metadata(source)


def _warn_of_differences(recorded: Any, engine: Engine) -> None:
    for line in recorded.differences(engine):
        print(f"warning: {line}", file=sys.stderr)


def _one_or_many(prompts: list[str] | None) -> str | list[str] | None:
    if not prompts:
        return None
    return prompts[0] if len(prompts) == 1 else prompts


def _pair(option: str, value: str | None) -> tuple[int | None, int | None]:
    if value is None:
        return None, None
    first, _, second = value.lower().partition("x")
    try:
        return int(first), int(second)
    except ValueError:
        raise ConfigError.for_field(option, value, "two whole numbers such as 512x768") from None


def _optional(pair: tuple[int | None, int | None]) -> tuple[int | None, int | None] | None:
    return None if pair[0] is None else pair


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


def _shown_by(bar: ProgressBar | None) -> Callable[[Step], None] | None:
    if bar is None:
        return None
    return lambda step: bar("generating", step.index + 1, step.total)
