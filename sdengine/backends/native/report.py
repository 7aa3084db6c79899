"""What a network does at a size, step by step: shapes, work and memory."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.layout import ITEM_BYTES
from sdengine.backends.native.packing import packed_kinds
from sdengine.backends.native.prepare import prepare
from sdengine.bundle.reader import Bundle

_WEIGHT_ITEM_BYTES = {"U8": 1, "F32": 4, "I32": 4}


@dataclass(frozen=True)
class Operation:
    """One operation.

    Args:
        kind: "linear", "winograd", "attention"...
        name: of the step that it comes from.
        shape: of what it makes, [images, height, width, channels].
        flops: multiplications and additions of the plain algorithm; 0 for what only moves values.
        map_bytes: of the maps that it reads and writes.
        weight_bytes: of the packed weights that it reads.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    flops: int
    map_bytes: int
    weight_bytes: int


def plan_network(
    bundle: Bundle, network: str, shapes: Mapping[str, tuple[int, ...]], precision: str
) -> tuple[list[Operation], int]:
    """Return the operations in their order, and the bytes of the arena that their maps share.

    Those are left out that zero inputs make needless: a U-Net's additions of residuals.

    Args:
        bundle: of target native.
        network: its name.
        shapes: shape of every input, by name.
        precision: "fp32", "bf16" or "int8".
    """
    prepared = prepare(bundle, network, shapes, precision, chosen_isa())
    weight_bytes = {
        name: math.prod(shape) * _WEIGHT_ITEM_BYTES[kind]
        for name, (kind, shape) in packed_kinds(prepared.packing).items()
    }
    program = prepared.program_without(prepared.additive())
    return [_operation(record, weight_bytes) for record in program.records], program.arena_bytes


def _operation(record: dict[str, Any], weight_bytes: Mapping[str, int]) -> Operation:
    maps = record["maps"]
    made = maps.get("out") or maps["to"]
    return Operation(
        kind=record["kind"],
        name=record["name"],
        shape=tuple(made[side] for side in ("images", "height", "width", "channels")),
        flops=_flops(record),
        map_bytes=sum(_elements(one) * ITEM_BYTES[one["type"]] for one in maps.values()),
        weight_bytes=sum(weight_bytes[name] for name in record["weights"].values()),
    )


def _elements(one: Mapping[str, Any]) -> int:
    return math.prod(one[side] for side in ("images", "height", "width", "channels"))


def _flops(record: dict[str, Any]) -> int:
    maps, kind = record["maps"], record["kind"]
    if kind == "linear":
        columns = 2 if record["words"]["activation"] == "geglu" else 1
        return 2 * columns * _elements(maps["out"]) * int(maps["x"]["channels"])
    if kind in ("conv", "winograd"):
        kernel = record["numbers"].get("kernel", 3)
        return 2 * _elements(maps["out"]) * int(maps["x"]["channels"] * kernel * kernel)
    if kind == "attention":
        return 4 * _elements(maps["q"]) * int(maps["k"]["width"])
    return 0
