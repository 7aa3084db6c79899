"""`sdengine plan`: estimate what fits into a GPU's memory."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdengine.cli.terminal import (
    note,
    parse_resolutions,
    print_table,
    progress_bar,
    say,
    say_json,
)
from sdengine.errors import ConfigError
from sdengine.storage.byte_size import parse_bytes

if TYPE_CHECKING:
    from sdengine.building.memory_estimate import MemoryEstimate
    from sdengine.bundle.manifest import Manifest
    from sdengine.checkpoints.part_source import PartSource


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] | train KIND [MODEL]",
            help="A bundle, a checkpoint, or an architecture such as sd15; of what is trained, the "
            "kind before it: embedding, hypernetwork, lora, dreambooth, controlnet, finetune.",
        ),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="To fit into, such as 8GiB.")
    ] = None,
    resolutions: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Pixels, such as 512,768; a bundle's own, or the model's, 1.5 and 2 times it.",
        ),
    ] = None,
    batch: Annotated[
        int | None, typer.Option(help="Images that one run makes; a bundle's own, or 1.")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="fp32, bf16 or fp16; a bundle's own, or fp16.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Estimate the memory that engines of a model, or its training, take on a GPU."""
    model, kind = _words(words or [])
    limit = None if memory is None else parse_bytes("--memory", memory)
    sizes = None if resolutions is None else parse_resolutions(resolutions)
    with progress_bar("reading", quiet=as_json) as progress:
        from sdengine.building.memory_estimate import built_memory, estimate_memory
        from sdengine.building.options import float_precision

        source, bundle = _open(model)
        if kind:
            from sdengine.cli.plan_training import plan_training

            plan_training(
                source,
                kind,
                resolutions=sizes,
                batch=batch,
                precision=precision,
                memory=limit,
                as_json=as_json,
            )
            return
        if sizes is None and bundle is not None:
            sizes = [*bundle.resolutions]
        found = estimate_memory(
            source,
            precision=precision or (float_precision(bundle.precision) if bundle else "fp16"),
            resolutions=sizes,
            batch=batch if batch is not None else bundle.max_batch if bundle else 1,
            built=built_memory(bundle) if bundle else None,
            progress=progress,
        )
    if as_json:
        say_json({**asdict(found), "memory_bytes": limit})
    else:
        _print(found, limit)


def _words(words: list[str]) -> tuple[str, str]:
    """Return the model, and the kind of training or ""."""
    kind = ""
    if words[:1] == ["train"] and len(words) > 1:
        kind, words = words[1], words[2:]
    if len(words) > 1 or words == ["train"]:
        raise ConfigError.for_field("model", " ".join(words), "one model, or train KIND and one")
    return (words[0] if words else "sd15"), kind


def _open(model: str) -> tuple[PartSource, Manifest | None]:
    """Return the networks, and the manifest where the model is a bundle."""
    from sdengine.bundle.manifest import MANIFEST_NAME
    from sdengine.bundle.reader import open_bundle
    from sdengine.checkpoints import load_checkpoint
    from sdengine.checkpoints.architecture_source import (
        architecture_of_bundle,
        published_architecture,
    )
    from sdengine.models.configs import ARCHITECTURES

    if model in ARCHITECTURES:
        return published_architecture(model), None
    if model == "demo" or (Path(model) / MANIFEST_NAME).is_file():
        manifest = open_bundle(model, verify="size").manifest
        return architecture_of_bundle(manifest.name, manifest.architecture), manifest
    if not Path(model).exists():
        raise ConfigError.for_field(
            "model", model, f"a bundle, a checkpoint, or one of {', '.join(ARCHITECTURES)}"
        )
    return load_checkpoint(model), None


def _print(found: MemoryEstimate, limit: int | None) -> None:
    from rich.table import Table

    weights = ", ".join(f"{name} {_gb(size)}" for name, size in found.weight_bytes.items())
    say(f"{found.name}, {found.precision}; weights in GB: {weights}")
    columns = ["size", "batch", "weights", "scratch", "latents, images", "total, GB", "low memory"]
    if limit is not None:
        columns.append(f"fits {limit / (1 << 30):.1f} GiB")
    table = Table(*columns, box=None, pad_edge=False)
    resident = sum(found.weight_bytes.values())
    for size in found.sizes:
        largest = max(size.scratch_bytes, key=lambda name: size.scratch_bytes[name])
        told = ", told" if largest in size.told else ""
        row = [
            f"{size.width}x{size.height}",
            str(size.batch),
            _gb(resident),
            f"{_gb(size.scratch_bytes[largest])} ({largest}{told})",
            _gb(size.pool_bytes),
            _gb(size.total_bytes),
            _gb(size.low_total_bytes),
        ]
        if limit is not None:
            row.append(_verdict(size.total_bytes, size.low_total_bytes, limit))
        table.add_row(*row)
    print_table(table)
    for name in sorted(found.sizes[0].more_bytes):
        beside = ", ".join(
            f"{_gb(size.more_bytes[name])} at {size.width}x{size.height}" for size in found.sizes
        )
        say(f"beside that, for requests that run {name}, in GB: {beside}")
    note(
        "Low memory: each network freed once it is done (--low-memory). Scratch follows from the "
        "graphs, or was told by the engines' builder; the CUDA context and captured graphs come on "
        "top. Not measured on a GPU."
    )


def _verdict(total: int, low: int, limit: int) -> str:
    return "yes" if total <= limit else "low memory" if low <= limit else "no"


def _gb(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f}"
