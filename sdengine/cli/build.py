"""`sdengine build`: a checkpoint into a bundle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from sdengine.cli import checkpoint_options as options
from sdengine.cli.terminal import note, parse_resolutions, progress_bar, say, say_json
from sdengine.compilers import COMPILERS
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.building.report import BuildReport


def build(
    checkpoint: Annotated[
        str, typer.Argument(help="Folder or single file, demo, demo-inpainting, or demo-depth.")
    ],
    output: Annotated[str, typer.Option("--output", "-o", metavar="BUNDLE", help="New folder.")],
    target: Annotated[str, typer.Option(help=f"One of {', '.join(COMPILERS)}.")] = "native",
    resolutions: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Pixels, such as 512,768 or 512x768; the checkpoint's own if not given.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images that one run makes; as the checkpoint says, or 1.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp32, bf16 or fp16; of TensorRT's engines also fp8 or int8.")
    ] = "fp16",
    calibration: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts, one a line, that fp8 and int8 are scaled by."),
    ] = None,
    controlnet: Annotated[bool, typer.Option(help="Let the U-Net read ControlNets.")] = True,
    control: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PATH",
            help="A ControlNet or T2I-Adapter for requests to steer with, by a name such as canny; "
            "repeatable.",
        ),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="CLIP image encoder for IP-Adapters, as transformers writes it; target native.",
        ),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(metavar="LIST", help="TensorRT-RTX builds for these, such as rtx4090,sm86."),
    ] = None,
    workspace: Annotated[
        float | None, typer.Option(metavar="GIB", help="Most scratch memory of TensorRT's engines.")
    ] = None,
    optimization_level: Annotated[
        int | None, typer.Option(help="How long TensorRT searches, 0 to 5.")
    ] = None,
    kernels: Annotated[
        str,
        typer.Option(help="Of TensorRT: native, triton for ours as plugins, auto for the faster."),
    ] = "auto",
    timing_cache: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Where full TensorRT keeps what it measured."),
    ] = None,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="Of target native: measure layers, keep loud ones exact; of fp8, int8: list them.",
        ),
    ] = False,
    variant: options.Variant = None,
    base: options.Base = None,
    vae: options.Vae = None,
    tiny_vae: options.TinyVae = None,
    family: options.Family = None,
    prediction_type: options.PredictionType = None,
    scheduler: options.Scheduler = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an older bundle.")] = False,
    cache: Annotated[bool, typer.Option(help="Keep exports for later, and use kept ones.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compile a checkpoint into a bundle that runs without torch."""
    sizes = None if resolutions is None else parse_resolutions(resolutions)
    with progress_bar("reading", quiet=as_json) as progress:
        from sdengine.building.build import build as run_build
        from sdengine.models.torch_threads import keep_to_quota

        keep_to_quota()
        built = run_build(
            options.open_if_changed(
                checkpoint, variant, base, vae, tiny_vae, family, prediction_type, scheduler
            ),
            output,
            target=target,
            resolutions=sizes,
            batch=batch,
            precision=precision,
            calibration=calibration,
            controlnet=controlnet,
            controls=_named(control) if control else None,
            image_encoder=image_encoder,
            gpus=() if gpu is None else tuple(name for name in gpu.split(",") if name.strip()),
            workspace_bytes=None if workspace is None else _bytes_of(workspace),
            optimization_level=optimization_level,
            kernels=kernels,
            timing_cache=timing_cache,
            measure_layers=report,
            force=force,
            cache=cache,
            progress=progress,
        )
    if as_json:
        say_json(describe(built))
        return
    say(f"{built.path} ({built.bundle_bytes / 1e6:.1f} MB)")
    for line in layer_lines(built):
        say(line)
    for line in built.not_taken_over:
        note(f"not taken over: {line}")
    for line in options.assumed_lines(built.guesses):
        note(line)
    if built.ignored:
        note(f"left out: {_count(built.ignored)}; `sdengine inspect` lists them")
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in built.seconds.items())
    note(f"{stages}; peak memory {built.peak_bytes / 1e9:.1f} GB")
    if built.max_error:
        errors = ", ".join(f"{name} {error:.1e}" for name, error in built.max_error.items())
        note(f"largest relative error of the export: {errors}")
    for network, counts in built.replaced.items():
        shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
        note(f"one node each in {network}: {shown}")


def layer_lines(built: BuildReport, most: int = 5) -> Iterator[str]:
    """Say how each network's layers err, and which are the worst."""
    for network, layers in built.layers.items():
        for precision in sorted({layer.precision for layer in layers}):
            errors = sorted(
                (layer for layer in layers if layer.precision == precision),
                key=lambda layer: -layer.error,
            )
            middle = errors[len(errors) // 2].error
            exact = sum(layer.is_exact for layer in errors)
            yield (
                f"{network} in {precision}: {len(errors)} layers, relative RMS error {middle:.1e} "
                f"in the middle, {exact} computed plainly"
            )
            for layer in errors[:most]:
                mark = "plainly" if layer.is_exact else layer.method
                yield f"    {layer.error:.1e}  {mark:14}  {layer.name}"


def _count(ignored: dict[str, str]) -> str:
    first = next(iter(ignored))
    more = "" if len(ignored) == 1 else f" and {len(ignored) - 1} more"
    return f"{first}{more}, which are none of the networks'"


def describe(report: BuildReport) -> dict[str, object]:
    """Return what `--json` prints."""
    return {
        "path": str(report.path),
        "bundle_bytes": report.bundle_bytes,
        "peak_bytes": report.peak_bytes,
        "seconds": report.seconds,
        "max_error": report.max_error,
        "replaced": report.replaced,
        "guesses": [asdict(guess) for guess in report.guesses],
        "ignored": report.ignored,
        "not_taken_over": report.not_taken_over,
        "layers": {name: [asdict(e) for e in errors] for name, errors in report.layers.items()},
    }


def _named(controls: list[str]) -> dict[str, str]:
    """Return the paths of controls by their names."""
    found: dict[str, str] = {}
    for one in controls:
        name, _, folder = one.partition("=")
        if not folder:
            raise ConfigError.for_field("--control", one, "NAME=PATH")
        if name in found:
            raise ConfigError.for_field("--control", one, "one path for each name")
        found[name] = folder
    return found


def _bytes_of(gib: float) -> int:
    if not 0 < gib <= 1 << 20:
        raise ConfigError.for_field("--workspace", gib, "GiB, such as 4 or 0.5")
    return int(gib * (1 << 30))
