"""`sdengine plan train KIND`: estimate what a training takes of a GPU's memory."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sdengine.cli.terminal import note, print_table, say, say_json
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sdengine.checkpoints.part_source import PartSource
    from sdengine.training.tuning.memory import TrainingMemory

GPU_GIB = (8, 12, 24)
# What a CUDA context and the libraries' workspaces take of it.
_RESERVED_BYTES = 800 << 20
_WAYS: tuple[tuple[str, dict[str, bool]], ...] = (
    ("as it is", {}),
    ("--gradient-checkpointing", {"recompute": True}),
    ("... and --optimiser adamw8bit", {"recompute": True, "eight_bit": True}),
)


def plan_training(
    source: PartSource,
    kind: str,
    *,
    resolutions: list[int | tuple[int, int]] | None,
    batch: int | None,
    precision: str | None,
    memory: int | None,
    as_json: bool,
) -> None:
    """Print what a kind of training takes, in each way to save memory.

    Args:
        source: the networks.
        kind: one of OPTIONS.
        resolutions: sides of squares; None is the model's own.
        batch, precision: of the training; None is 1, and what a training computes in by itself.
        memory: to fit into; None for GPUs of GPU_GIB.
        as_json: print an object for programs.

    Raises:
        ConfigError: the kind or an option is not accepted.
    """
    from sdengine.training.tuning.memory import estimate_training
    from sdengine.training.tuning.options import OPTIONS

    if kind not in OPTIONS:
        raise ConfigError.for_field("kind", kind, ", ".join(OPTIONS))
    given: dict[str, Any] = {"batch": batch or 1, **({"precision": precision} if precision else {})}
    if kind == "controlnet":
        given["preprocessor"] = "canny"  # whichever it is
    found = []
    sides: Sequence[int | tuple[int, int] | None] = resolutions or [None]
    for size in sides:
        if isinstance(size, tuple):
            raise ConfigError.for_field("--resolutions", size, "sides of squares, such as 512,768")
        options = OPTIONS[kind](resolution=size, **given)
        found.append(estimate_training(source, options))
    limits = [gib << 30 for gib in GPU_GIB] if memory is None else [memory]
    if as_json:
        ways = dict(_WAYS)
        sizes = [
            {**asdict(one), "total": {name: one.total(**way) for name, way in ways.items()}}
            for one in found
        ]
        say_json({"kind": kind, "sizes": sizes, "memory_bytes": limits})
        return
    _print(found, options.precision, limits)


def _print(found: list[TrainingMemory], precision: str, limits: list[int]) -> None:
    from rich.table import Table

    first = found[0]
    say(f"{first.kind} in {precision}: {first.trained:,} numbers are trained; figures in GB")
    columns = ["size", "batch", "way", "weights", "gradients", "optimiser", "activations", "total"]
    columns += [f"fits {limit / (1 << 30):g} GiB" for limit in limits]
    table = Table(*columns, box=None, pad_edge=False)
    for one in found:
        for name, way in _WAYS:
            total = one.total(**way)
            optimiser = one.optimiser_8_bit if way.get("eight_bit") else one.optimiser
            activations = one.recomputed if way.get("recompute") else one.activations
            parts = (one.weights, one.gradients, optimiser, activations, total)
            table.add_row(
                f"{one.width}x{one.height}",
                str(one.batch),
                name,
                *(f"{part / 1e9:.2f}" for part in parts),
                *("yes" if total + _RESERVED_BYTES <= limit else "no" for limit in limits),
            )
    print_table(table)
    note(
        f"Beside the total, {_RESERVED_BYTES >> 20} MiB are left for CUDA and its libraries. "
        "Counted from the networks' shapes, not measured on a GPU."
    )
