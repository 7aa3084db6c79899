"""Report of a network at a size, operation by operation: shapes, work and memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.backends.native.operations import OPERATIONS
from sdengine.backends.native.packing import packed_kinds
from sdengine.backends.native.prepare import BF16_ISA, Prepared, prepare
from sdengine.backends.native.records import ITEM_BYTES, Map, Record, map_size
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
        products: multiplications and additions of the products that are computed.
        values: what they multiply, as `_native.peak_rate` names it; "" where there are none.
        map_bytes: of the maps that it reads and writes.
        written_bytes: of the map that it writes.
        weight_bytes: of the packed weights that it reads.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    flops: int
    products: float
    values: str
    map_bytes: int
    written_bytes: int
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
    return report_prepared(prepare(bundle, network, shapes, precision, chosen_isa()))


def report_prepared(prepared: Prepared) -> tuple[list[OperationReport], int]:
    """Return the same of a network that is prepared for the instruction set that runs."""
    weight_bytes = {
        name: tensor_bytes(kind, shape)
        for name, (kind, shape) in packed_kinds(prepared.packing).items()
    }
    program = prepared.program_without(prepared.additive())
    return [_operation(record, weight_bytes) for record in program.records], program.arena_bytes


def _operation(record: Record, weight_bytes: Mapping[str, int]) -> OperationReport:
    maps = record["maps"]
    out = maps.get("out") or maps["to"]
    row = OPERATIONS.get(record["kind"])  # copies are no operation of a graph
    values, products = products_of(record)
    return OperationReport(
        kind=record["kind"],
        name=record["name"],
        shape=map_size(out),
        flops=row.flops(record) if row else 0,
        products=products,
        values=values,
        map_bytes=sum(map(_bytes, maps.values())),
        written_bytes=_bytes(out),
        weight_bytes=sum(weight_bytes[name] for name in record["weights"].values()),
    )


def products_of(record: Record) -> tuple[str, float]:
    """Return what an operation multiplies, and how many multiplications and additions it does.

    Winograd's tiles need fewer than the plain algorithm; their transforms are not counted.
    """
    kind, words = record["kind"], record["words"]
    row = OPERATIONS.get(kind)
    flops = row.flops(record) if row else 0
    if kind == "attention":
        if record["maps"]["q"]["type"] == "float32":
            return "float32", flops
        return "bfloat16" if chosen_isa() == BF16_ISA else "int16", flops
    if kind == "winograd":
        tile = record["numbers"]["tile"]
        return words["weight_kind"], flops * (tile + 2) ** 2 / (9 * tile**2)
    return words.get("weight_kind", ""), flops


def _bytes(one: Map) -> int:
    return map_size(one).elements * ITEM_BYTES[one["type"]]
