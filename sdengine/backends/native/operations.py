"""Operations of the native target: one table of what each kind of step reads, has and makes.

From a row follow the check of a graph's file, the size of the output, the packing of its weights,
its record for the kernels, and its work. The kernel itself stands in csrc/nn under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from sdengine.backends.native import size_rules
from sdengine.backends.native.records import Map, Record, map_size
from sdengine.backends.native.size_rules import Size, Sizes, refuse
from sdengine.backends.native.step import Step


@dataclass(frozen=True)
class Weight:
    """One tensor that an operation reads.

    Args:
        layout: a "matrix" [out_features, in_features], or kernels, is laid out for products; a
            "vector" stays as it is; of a "table" [rows, channels] the first rows are read.
        length: values that are read of a vector or table, from the step and its values' sizes.
        optional: the operation does without.
    """

    layout: Literal["matrix", "vector", "table"] = "vector"
    length: Callable[[Step, Sizes], int] = lambda step, sizes: sizes[step.output].channels
    optional: bool = False


@dataclass(frozen=True)
class Operation:
    """What is particular to one kind of step.

    Args:
        size: of what it makes.
        inputs: roles of what it reads; none where `joins`.
        optional: roles of what it may read beside.
        joins: it reads any number of inputs, in the order of their roles.
        weights: by role.
        sizing: fields of a step that count for the size alone.
        numbers, words: fields of a step that its kernel takes.
        flops: multiplications and additions of the plain algorithm.
        is_view: it moves nothing: its output lies in its input, or the other way round.
        is_method: no graph's file has it; another kind is computed so.
        can_widen: it can write another type than it reads.
        keeps_fp32: what it alone reads of a network's inputs stays in fp32.
        in_one_row: it reads maps of tokens, whose height is part of their width.
    """

    size: Callable[[Step, Sizes], Size]
    inputs: tuple[str, ...] = ("x",)
    optional: tuple[str, ...] = ()
    joins: bool = False
    weights: Mapping[str, Weight] = field(default_factory=dict)
    sizing: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    flops: Callable[[Record], int] = lambda _: 0
    is_view: bool = False
    is_method: bool = False
    can_widen: bool = False
    keeps_fp32: bool = False
    in_one_row: bool = False


def _linear_flops(record: Record) -> int:
    columns = 2 if record["words"]["activation"] == "geglu" else 1
    maps = record["maps"]
    return 2 * columns * map_size(maps["out"]).elements * maps["x"]["channels"]


def _conv_flops(record: Record) -> int:
    kernel = int(record["numbers"].get("kernel", 3))  # Winograd's is always 3
    maps = record["maps"]
    return 2 * map_size(maps["out"]).elements * maps["x"]["channels"] * kernel * kernel


def _attention_flops(record: Record) -> int:
    return 4 * map_size(record["maps"]["q"]).elements * record["maps"]["k"]["width"]


_ADDED = ("residual", "per_image")
_MATRIX = {
    "weight": Weight("matrix"),
    "bias": Weight(length=lambda step, _: step.out_features, optional=True),
}
_NORM = {"weight": Weight(), "bias": Weight()}

OPERATIONS: Mapping[str, Operation] = {
    "linear": Operation(
        size_rules.new_channels,
        optional=_ADDED,
        weights=_MATRIX,
        sizing=("channels",),
        words=("weight_kind", "activation"),
        flops=_linear_flops,
        can_widen=True,
    ),
    "conv": Operation(
        size_rules.convolved,
        optional=_ADDED,
        weights=_MATRIX,
        sizing=("channels", "padding_after"),
        numbers=("kernel", "stride", "padding", "upsample"),
        words=("weight_kind", "activation", "wraps"),
        flops=_conv_flops,
        can_widen=True,
    ),
    "winograd": Operation(
        size_rules.convolved,
        optional=_ADDED,
        weights=_MATRIX,
        sizing=("channels",),
        numbers=("tile", "upsample"),
        words=("weight_kind", "activation", "wraps"),
        flops=_conv_flops,
        is_method=True,
        can_widen=True,
    ),
    "group_norm": Operation(
        size_rules.same_size,
        weights=_NORM,
        numbers=("groups", "epsilon"),
        words=("activation",),
    ),
    "affine": Operation(
        size_rules.scaled,
        inputs=("x", "factors"),
        words=("activation",),
        is_method=True,
        keeps_fp32=True,
    ),
    "layer_norm": Operation(size_rules.same_size, weights=_NORM, numbers=("epsilon",)),
    "attention": Operation(
        size_rules.attended,
        inputs=("q", "k", "v"),
        numbers=("heads", "scale", "causal"),
        flops=_attention_flops,
        in_one_row=True,
    ),
    "add": Operation(size_rules.added, inputs=("a", "b"), numbers=("scale",), can_widen=True),
    "activation": Operation(size_rules.same_size, words=("activation",), can_widen=True),
    "sinusoid": Operation(
        size_rules.cosines_and_sines,
        weights={"frequencies": Weight(length=lambda step, _: step.channels)},
        numbers=("channels",),
        keeps_fp32=True,
    ),
    "select": Operation(size_rules.selected, inputs=("x", "index"), can_widen=True),
    "concat": Operation(size_rules.concatenated, inputs=(), joins=True, is_view=True),
    "stack": Operation(size_rules.stacked, inputs=(), joins=True, is_view=True),
    "slice": Operation(size_rules.sliced, sizing=("first", "parts"), is_view=True),
    "cut": Operation(size_rules.cut, sizing=("first", "channels"), is_view=True),
    "constant": Operation(
        size_rules.constant,
        inputs=(),
        weights={"values": Weight("table", lambda step, _: step.first * step.channels)},
        sizing=("first", "channels"),
        is_view=True,
    ),
}
# What multiplies a matrix; how is decided when a network is loaded.
PRODUCTS = frozenset(
    kind
    for kind, operation in OPERATIONS.items()
    if any(weight.layout == "matrix" for weight in operation.weights.values())
)
_METHOD = {"weight_kind", "tile", "wraps"}
_ALWAYS = {"kind", "name", "inputs", "output", "weights"}


def check_step(step: Step) -> None:
    """Check a step of a file against its row: kind, roles of inputs and weights, fields.

    Raises:
        BundleError: naming the step and what its kind has instead.
    """
    known = [kind for kind, row in OPERATIONS.items() if not row.is_method]
    if step.kind not in known:
        refuse(step, f"is of a kind that is not one of {', '.join(known)}")
    row = OPERATIONS[step.kind]
    if row.joins and not step.inputs:
        refuse(step, "has no inputs")
    inputs = set() if row.joins else set(step.inputs)
    needed = {role for role, weight in row.weights.items() if not weight.optional}
    for what, found, least, most in (
        ("inputs", inputs, set(row.inputs), {*row.inputs, *row.optional}),
        ("weights", set(step.weights), needed, set(row.weights)),
    ):
        if not least <= found <= most:
            listed = [f"{role} (optional)" if role not in least else role for role in sorted(most)]
            refuse(step, f"has the {what} {sorted(found)}; expected {', '.join(listed) or 'none'}")
    fields = {*row.sizing, *row.numbers, *row.words} - _METHOD
    extra = step.model_fields_set - _ALWAYS - fields
    if extra:
        refuse(step, f"has {', '.join(sorted(extra))}, which its kind does not know")


def make_record(step: Step, maps: dict[str, Map]) -> Record:
    """Return the record of a step, which its kernel is made from.

    Args:
        step: no view, with its method chosen and its weights packed.
        maps: by role, what it reads and "out".
    """
    kind = "winograd" if step.tile else step.kind
    row = OPERATIONS[kind]
    if row.in_one_row:
        maps = {
            role: {**one, "height": 1, "width": one["height"] * one["width"]}
            for role, one in maps.items()
        }
    return {
        "kind": kind,
        "name": step.name,
        "maps": maps,
        "weights": dict(step.weights),
        "numbers": {name: _number(step, name) for name in row.numbers},
        "words": {name: str(getattr(step, name)) for name in row.words},
        "lists": {},
    }


def _number(step: Step, name: str) -> float:
    value: float = getattr(step, name)
    return int(value) if isinstance(value, bool) else value
