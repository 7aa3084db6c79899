"""Report of a network at a size, operation by operation: shapes, work and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.operations import OPERATIONS
from sdengine.backends.native.packing import packed_kinds
from sdengine.backends.native.prepare import prepare
from sdengine.backends.native.records import ITEM_BYTES, Record, map_size
from sdengine.bundle.reader import Bundle
from sdengine.storage.tensor_file import tensor_bytes


@dataclass(frozen=True)
class OperationReport:
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


def report_network(
    bundle: Bundle, network: str, shapes: Mapping[str, tuple[int, ...]], precision: str
) -> tuple[list[OperationReport], int]:
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
        name: tensor_bytes(kind, shape)
        for name, (kind, shape) in packed_kinds(prepared.packing).items()
    }
    program = prepared.program_without(prepared.additive())
    return [_operation(record, weight_bytes) for record in program.records], program.arena_bytes


def _operation(record: Record, weight_bytes: Mapping[str, int]) -> OperationReport:
    maps = record["maps"]
    row = OPERATIONS.get(record["kind"])  # copies are no operation of a graph
    return OperationReport(
        kind=record["kind"],
        name=record["name"],
        shape=map_size(maps.get("out") or maps["to"]),
        flops=row.flops(record) if row else 0,
        map_bytes=sum(map_size(one).elements * ITEM_BYTES[one["type"]] for one in maps.values()),
        weight_bytes=sum(weight_bytes[name] for name in record["weights"].values()),
    )
