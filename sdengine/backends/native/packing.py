"""Packing of weights: laid out for the kernels, by how each product is computed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.adapters.changes import Strong, merged, not_finite, terms
from sdengine.backends.native.graph import Graph
from sdengine.backends.native.operations import OPERATIONS, Weight
from sdengine.backends.native.projections import JOINT
from sdengine.backends.native.size_rules import Sizes
from sdengine.backends.native.step import Step
from sdengine.errors import BundleError
from sdengine.machine import usable_processors
from sdengine.storage.tensor_file import Kinds, tensor_bytes, to_float32

Array = NDArray[Any]
PANEL = 32  # output features
_LINE = 64  # bytes, of a cache
# Values along the input features in a lane of four bytes; see csrc/nn/arguments.h.
_PER_LANE = {"float32": 1, "bfloat16": 2, "int16": 2, "int8": 4}
_GATES = (
    16  # output features that are values, then so many that are gates; see csrc/nn/ops/epilogue.h
)


@dataclass(frozen=True)
class Packed:
    """One weight as the kernels want it.

    Args:
        name: of the tensor that holds it; its scales and sums are called after it.
        source: the tensor that it is made of, or several whose rows follow each other.
        layout: "panels", "winograd", or "vector" for what stays as it is, in fp32.
        kind: what its values are stored in.
        out_features, in_features: of panels, the matrix; of Winograd, output and input channels;
            of a vector, its length and 1.
        tile: of Winograd.
        kernel: side of the source's kernels.
        gated: output features are ordered as 16 values, 16 gates, and so on.
    """

    name: str
    source: str
    layout: str
    kind: str
    out_features: int
    in_features: int
    tile: int = 0
    kernel: int = 1
    gated: bool = False

    def kinds(self) -> Kinds:
        """Return type and shape of every tensor that it becomes."""
        if self.layout == "vector":
            return {self.name: ("F32", (self.out_features,))}
        panels = -(-self.out_features // PANEL)
        panel_bytes = -(-self.in_features // _PER_LANE[self.kind]) * PANEL * 4
        points = (self.tile + 2) ** 2 if self.layout == "winograd" else 1
        kinds: Kinds = {self.name: ("U8", (panels * points * panel_bytes,))}
        if self.kind in ("int8", "int16"):
            kinds[f"{self.name}.scales"] = ("F32", (panels * points * PANEL,))
        if self.kind == "int8":
            kinds[f"{self.name}.sums"] = ("I32", (panels * PANEL,))
        return kinds


Packing = tuple[Packed, ...]


def plan_packing(graph: Graph, sizes: Sizes, weights: Mapping[str, Array]) -> tuple[Graph, Packing]:
    """Name what the weights of a graph become.

    Args:
        graph: as `choose_methods` returns it.
        sizes: of its values.
        weights: the bundle's tensors.

    Returns:
        The graph reading packed tensors, and these.

    Raises:
        BundleError: a tensor is missing or has another shape than its step implies.
    """
    packing: dict[str, Packed] = {}
    steps = []
    for step in graph.steps:
        renamed = {}
        for role in step.weights:
            packed = packed_weight(step, role, sizes)
            if packed.name not in packing:
                weight = OPERATIONS[step.kind].weights[role]
                _check_source(step, weight, packed, weights)
                packing[packed.name] = packed
            for name in packed.kinds():
                suffix = name[len(packed.name) + 1 :]
                renamed[suffix or role] = name
        steps.append(step.model_copy(update={"weights": renamed}))
    # The largest alignment first: panels are whole cache lines, vectors are not.
    ordered = sorted(packing.values(), key=lambda p: p.layout == "vector")
    return graph.model_copy(update={"steps": tuple(steps)}), tuple(ordered)


def pack(
    packing: Packing,
    weights: Mapping[str, Array],
    changes: Mapping[str, Sequence[Strong]] = MappingProxyType({}),
    *,
    together: bool = False,
) -> Iterator[tuple[str, Array]]:
    """Lay weights out, one after the other, on as many threads as there may be.

    Args:
        packing: what they become.
        weights: the bundle's tensors.
        changes: what is merged into them, by tensor; see `sdengine.adapters.changes`.
        together: they lie side by side in memory that is freed with the last of them. Most are
            smaller than a large page, and pages of 4 KiB cost more to get than to fill.

    Raises:
        AdapterError: a sum is not finite.
    """
    threads = usable_processors().threads
    places = _side_by_side(packing) if together else [None] * len(packing)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[list[tuple[str, Array]]]] = deque()
        try:
            for packed, place in zip(packing, places, strict=True):
                ahead.append(pool.submit(_pack_one, packed, weights, changes, place))
                if len(ahead) > 2 * threads:  # what is made ahead waits in memory
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            for left in ahead:
                left.cancel()


def sources_of(packed: Packed) -> list[str]:
    """Return the tensors that a packed one is made of."""
    return packed.source.split(JOINT)


def packed_kinds(packing: Packing) -> Kinds:
    """Return type and shape of every tensor that `pack` gives, in a file's order."""
    kinds: Kinds = {}
    for packed in packing:
        kinds.update(packed.kinds())
    return dict(sorted(kinds.items(), key=lambda item: item[1][0] != "U8"))


def packed_weight(step: Step, role: str, sizes: Sizes) -> Packed:
    """Return what one weight of a step becomes, by the step's method.

    Args:
        step: as `choose_methods` leaves it.
        role: of the weight.
        sizes: of the graph's values.
    """
    source, weight = step.weights[role], OPERATIONS[step.kind].weights[role]
    gated = step.activation == "geglu"
    ending = ":gated" if gated else ""
    if weight.layout != "matrix":
        length = weight.length(step, sizes)
        return Packed(f"{source}{ending}", source, "vector", "float32", length, 1, gated=gated)
    kind, rows = step.weight_kind, step.out_features
    channels = sizes[step.inputs["x"]].channels
    if step.tile:
        name = f"{source}:{kind}:{step.tile}"
        return Packed(name, source, "winograd", kind, rows, channels, step.tile, 3)
    name = f"{source}:{kind}{ending}"
    inner = channels * step.kernel**2
    return Packed(name, source, "panels", kind, rows, inner, 0, step.kernel, gated)


def packed_bytes(packing: Packing) -> int:
    """Return the bytes of everything that weights become."""
    return sum(tensor_bytes(kind, shape) for kind, shape in packed_kinds(packing).values())


def _check_source(step: Step, weight: Weight, packed: Packed, weights: Mapping[str, Array]) -> None:
    sources = sources_of(packed)
    missing = [source for source in sources if source not in weights]
    if missing:
        raise BundleError(f"step {step.name!r} wants the tensor {missing[0]!r}; there is none.")
    shapes = [weights[source].shape for source in sources]
    found = shapes[0]
    if len(shapes) > 1 and all(shape and shape[1:] == found[1:] for shape in shapes):
        found = (sum(shape[0] for shape in shapes), *found[1:])
    if weight.layout == "table":
        fits = len(found) == 2 and found[0] >= step.first and found[1] == step.channels
    elif weight.layout == "vector":
        fits = found == (packed.out_features,)
    else:
        k = packed.kernel
        channels = packed.in_features // (1 if packed.layout == "winograd" else k**2)
        fits = found == (packed.out_features, channels, k, k)
        fits |= k == 1 and found == (packed.out_features, channels)
    if packed.gated and packed.out_features % (2 * _GATES):
        raise BundleError(
            f"step {step.name!r} has {packed.out_features} gated features, not whole 32s."
        )
    if not fits or 0 in found:
        raise BundleError(
            f"step {step.name!r}: tensor {packed.source!r} is {list(found)}, which does not fit "
            f"{packed.out_features} x {packed.in_features}."
        )


def _side_by_side(packing: Packing) -> Sequence[NDArray[np.uint8] | None]:
    """Return where the bytes of each packed tensor go; None for vectors."""
    kinds = [one.kinds()[one.name] for one in packing]
    ends = np.cumsum([0, *(-(-tensor_bytes(*kind) // _LINE) * _LINE for kind in kinds)])
    memory = _native.own_pages(int(ends[-1]))
    return [
        None if one.layout == "vector" else memory[start : start + tensor_bytes(*kind)]
        for one, kind, start in zip(packing, kinds, map(int, ends), strict=False)
    ]


def _pack_one(
    packed: Packed,
    weights: Mapping[str, Array],
    changes: Mapping[str, Sequence[Strong]],
    place: NDArray[np.uint8] | None,
) -> list[tuple[str, Array]]:
    names = sources_of(packed)
    if packed.layout == "vector":
        vectors = [to_float32(merged(weights[name], changes.get(name, ()))) for name in names]
        values = vectors[0] if len(vectors) == 1 else np.concatenate(vectors)
        if packed.gated:
            values = interleave_gated(values)
        return [(packed.name, np.ascontiguousarray(values.reshape(-1)[: packed.out_features]))]
    pristine = [(name, np.ascontiguousarray(weights[name])) for name in names]
    sources = [(weight, terms(weight, changes.get(name, ()))) for name, weight in pristine]
    data, scales, sums, is_finite = _native.pack(
        packed.kind, packed.tile, sources, packed.gated, to=place
    )
    if not is_finite:
        raise not_finite(packed.source)
    made: dict[str, Array] = {packed.name: data}
    made |= {f"{packed.name}.scales": scales, f"{packed.name}.sums": sums}
    return [(name, made[name]) for name in packed.kinds()]


def interleave_gated(values: Array) -> Array:
    """Order the output features of a gated layer, values then gates, as 16 and 16 in turn."""
    half = len(values) // 2
    split = values.reshape(2, half // _GATES, _GATES, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(values.shape)
