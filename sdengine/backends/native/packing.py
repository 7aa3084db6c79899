"""How each step is computed, and its weights laid out for that."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.native.graph import Graph, Step
from sdengine.backends.native.map_sizes import Size
from sdengine.backends.native.projections import JOINT, join_projections
from sdengine.errors import BundleError
from sdengine.storage.tensor_file import Kinds, to_float32

Array = NDArray[Any]
PANEL = 32
# Values of the inner dimension in a lane of four bytes; see csrc/nn/arguments.h.
_PER_LANE = {"float32": 1, "bfloat16": 2, "int16": 2, "int8": 4}
# Convolutions of fewer input channels are gathered: a transformed tile would be mostly padding.
_LEAST_WINOGRAD_CHANNELS = 16
_LEAST_INT8_CHANNELS = 64
# Where a map is so much smaller than the network's largest input, in pixels, and has so many
# channels, small tiles: their weights take less than half the memory, and reading those of large
# tiles takes about as long as the multiplications that they save. U-Nets' lowest levels are such.
_COARSE, _COARSE_CHANNELS = 16, 1280
_GATES = 16  # columns of values, then so many of gates; see csrc/nn/ops/epilogue.h


@dataclass(frozen=True)
class Packed:
    """One weight as the kernels want it.

    Args:
        name: of the tensor that holds it; its scales and sums are called after it.
        source: the tensor that it is made of, or several whose rows follow each other.
        layout: "panels", "winograd", or "vector" for what stays as it is, in fp32.
        kind: what its values are stored in.
        columns, inner: of panels, the matrix; of Winograd, output and input channels; of a
            vector, its length and 1.
        tile: of Winograd.
        kernel: side of the source's kernels.
        gated: columns are ordered as pairs of 16 values and 16 gates.
    """

    name: str
    source: str
    layout: str
    kind: str
    columns: int
    inner: int
    tile: int = 0
    kernel: int = 1
    gated: bool = False

    def kinds(self) -> Kinds:
        """Return type and shape of every tensor that it becomes."""
        if self.layout == "vector":
            return {self.name: ("F32", (self.columns,))}
        panels = -(-self.columns // PANEL)
        panel_bytes = -(-self.inner // _PER_LANE[self.kind]) * PANEL * 4
        points = (self.tile + 2) ** 2 if self.layout == "winograd" else 1
        kinds: Kinds = {self.name: ("U8", (panels * points * panel_bytes,))}
        if self.kind in ("int8", "int16"):
            kinds[f"{self.name}.scales"] = ("F32", (panels * points * PANEL,))
        if self.kind == "int8":
            kinds[f"{self.name}.sums"] = ("I32", (panels * PANEL,))
        return kinds


Packing = tuple[Packed, ...]


def choose_methods(
    graph: Graph,
    sizes: Mapping[str, Size],
    precision: str,
    *,
    whole_numbers: bool = False,
    exact: Collection[str] = (),
    weight_bytes: int | None = None,
) -> Graph:
    """Decide for every linear layer and convolution how it is computed.

    The choice depends on how maps' sizes compare with each other, but not on the size of the
    picture, so that all sizes share one copy of the packed weights.

    Args:
        graph: a network.
        sizes: of its values.
        precision: "fp32", "bf16" or "int8".
        whole_numbers: in the place of bf16, multiply 16-bit whole numbers with a scale for each
            row and column: more exact, and faster where bf16 has no products of its own.
        exact: outputs of steps that are computed neither in 8 bits nor by transforms, because a
            build found their error too large.
        weight_bytes: the most that packed weights may take; convolutions, the largest first, are
            computed with smaller tiles, then without transforms, until they take no more. None
            for no limit.
    """
    floats = "float32" if precision == "fp32" else "int16" if whole_numbers else "bfloat16"
    given = {port.value for port in graph.inputs}
    steps = [
        _with_method(step, sizes, precision, floats, given)
        if step.output not in exact
        else _plainly(step, floats)
        for step in graph.steps
    ]
    if weight_bytes is not None:
        _shrink(steps, sizes, floats, weight_bytes)
    return join_projections(graph.model_copy(update={"steps": tuple(steps)}))


def _plainly(step: Step, floats: str) -> Step:
    is_product = step.kind in ("linear", "conv")
    return step.model_copy(update={"weight_kind": floats}) if is_product else step


def _with_method(
    step: Step, sizes: Mapping[str, Size], precision: str, floats: str, given: set[str]
) -> Step:
    if step.kind not in ("linear", "conv"):
        return step
    x = sizes[step.inputs["x"]]
    if step.kind == "linear":
        # What steers every pixel of an image stays exact: a row such as the time embedding's, and
        # the prompt, which is short. What reads few channels, such as latents, has little to win.
        steers = x.height * x.width == 1 or step.inputs["x"] in given
        eight_bits = not steers and x.channels >= _LEAST_INT8_CHANNELS
        kind = "int8" if precision == "int8" and eight_bits else floats
        return step.model_copy(update={"weight_kind": kind})
    plain = (step.kernel, step.step, step.pad, step.after) == (3, 1, 1, 0)
    if plain and x.channels >= _LEAST_WINOGRAD_CHANNELS and step.activation == "none":
        kind = "float32" if precision == "fp32" else "int16"
        largest = max((_pixels(sizes[name]) for name in given), default=0)
        coarse = _pixels(sizes[step.output]) * _COARSE <= largest
        small = coarse and x.channels >= _COARSE_CHANNELS
        return step.model_copy(update={"weight_kind": kind, "tile": 2 if small else 4})
    return step.model_copy(update={"weight_kind": floats})


def _pixels(size: Size) -> int:
    return size.height * size.width


def _shrink(steps: list[Step], sizes: Mapping[str, Size], floats: str, limit: int) -> None:
    """Take smaller tiles, then none, for the largest convolutions until the weights fit."""

    def size_of(step: Step) -> int:
        return _bytes(_packed(step, "weight", step.weights["weight"], sizes))

    total = sum(size_of(step) for step in steps if step.kind in ("linear", "conv"))
    for tile in (2, 0):
        order = sorted((i for i, s in enumerate(steps) if s.tile), key=lambda i: -size_of(steps[i]))
        for index in order:
            if total <= limit:
                return
            step = steps[index]
            kind = step.weight_kind if tile else floats
            steps[index] = step.model_copy(update={"tile": tile, "weight_kind": kind})
            total += size_of(steps[index]) - size_of(step)


def plan_packing(
    graph: Graph, sizes: Mapping[str, Size], weights: Mapping[str, Array]
) -> tuple[Graph, Packing]:
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
        for role, source in step.weights.items():
            packed = _packed(step, role, source, sizes)
            if packed.name not in packing:
                _check_source(step, packed, weights)
                packing[packed.name] = packed
            for name in packed.kinds():
                suffix = name[len(packed.name) + 1 :]
                renamed[suffix or role] = name
        steps.append(step.model_copy(update={"weights": renamed}))
    # The largest alignment first: panels are whole cache lines, vectors are not.
    ordered = sorted(packing.values(), key=lambda p: p.layout == "vector")
    return graph.model_copy(update={"steps": tuple(steps)}), tuple(ordered)


def pack(packing: Packing, weights: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """Lay weights out, one after the other, on as many threads as the processor has."""
    with ThreadPoolExecutor() as pool:
        ahead = []
        for packed in packing:
            ahead.append(pool.submit(_pack_one, packed, weights))
            if len(ahead) > 4:  # what is made ahead waits in memory
                yield from ahead.pop(0).result()
        for made in ahead:
            yield from made.result()


def packed_kinds(packing: Packing) -> Kinds:
    """Return type and shape of every tensor that `pack` gives, in a file's order."""
    kinds: Kinds = {}
    for packed in packing:
        kinds.update(packed.kinds())
    return dict(sorted(kinds.items(), key=lambda item: item[1][0] != "U8"))


def _packed(step: Step, role: str, source: str, sizes: Mapping[str, Size]) -> Packed:
    gated = step.activation == "geglu"
    if step.kind not in ("linear", "conv") or role != "weight":
        name = f"{source}:gated" if gated else source
        count = _vector_length(step, sizes)
        return Packed(name, source, "vector", "float32", count, 1, gated=gated)
    kind = step.weight_kind
    columns = step.channels * (2 if gated else 1)
    channels = sizes[step.inputs["x"]].channels
    if step.tile:
        name = f"{source}:{kind}:{step.tile}"
        return Packed(name, source, "winograd", kind, columns, channels, step.tile, 3)
    name = f"{source}:{kind}" + (":gated" if gated else "")
    inner = channels * step.kernel**2
    return Packed(name, source, "panels", kind, columns, inner, 0, step.kernel, gated)


def _vector_length(step: Step, sizes: Mapping[str, Size]) -> int:
    if step.kind == "sinusoid":
        return step.channels
    if step.kind == "constant":
        return step.first * step.channels
    if step.kind in ("linear", "conv"):
        return step.channels * (2 if step.activation == "geglu" else 1)
    return sizes[step.output].channels


def _check_source(step: Step, packed: Packed, weights: Mapping[str, Array]) -> None:
    sources = packed.source.split(JOINT)
    missing = [source for source in sources if source not in weights]
    if missing:
        raise BundleError(f"step {step.name!r} wants the tensor {missing[0]!r}; there is none.")
    shapes = [weights[source].shape for source in sources]
    found = shapes[0]
    if len(shapes) > 1 and all(shape and shape[1:] == found[1:] for shape in shapes):
        found = (sum(shape[0] for shape in shapes), *found[1:])
    if packed.layout == "vector":
        fits = found == (packed.columns,)
        if step.kind == "constant":
            fits = len(found) == 2 and found[0] >= step.first and found[1] == step.channels
    else:
        k = packed.kernel
        channels = packed.inner if packed.layout == "winograd" else packed.inner // k**2
        fits = found == (packed.columns, channels, k, k)
        fits |= k == 1 and found == (packed.columns, channels)
    if packed.gated and packed.columns % (2 * _GATES):
        raise BundleError(f"step {step.name!r} has {packed.columns} gated columns, not whole 32s.")
    if not fits or 0 in found:
        raise BundleError(
            f"step {step.name!r}: tensor {packed.source!r} is {list(found)}, which does not fit "
            f"{packed.columns} x {packed.inner}."
        )


def _pack_one(packed: Packed, weights: Mapping[str, Array]) -> list[tuple[str, Array]]:
    sources = [to_float32(weights[source]) for source in packed.source.split(JOINT)]
    values = sources[0] if len(sources) == 1 else np.concatenate(sources)
    if packed.gated:
        values = interleave_gated(values)
    if packed.layout == "vector":
        return [(packed.name, np.ascontiguousarray(values.reshape(-1)[: packed.columns]))]
    made: dict[str, Array]
    if packed.layout == "winograd":
        kernels = np.ascontiguousarray(values)
        data, scales = _native.pack_winograd(packed.kind, packed.tile, kernels)
        made = {packed.name: data, f"{packed.name}.scales": scales}
    else:
        if values.ndim == 4:
            values = values.transpose(0, 2, 3, 1)
        matrix = np.ascontiguousarray(values.reshape(packed.columns, packed.inner))
        data, scales, sums = _native.pack_panels(packed.kind, matrix)
        made = {packed.name: data, f"{packed.name}.scales": scales, f"{packed.name}.sums": sums}
    return [(name, made[name]) for name in packed.kinds()]


def interleave_gated(values: Array) -> Array:
    """Order the columns of a gated layer, values then gates, as 16 of these and 16 of those."""
    half = len(values) // 2
    split = values.reshape(2, half // _GATES, _GATES, *values.shape[1:])
    return np.ascontiguousarray(split.swapaxes(0, 1)).reshape(values.shape)


def _bytes(packed: Packed) -> int:
    item = {"U8": 1, "F32": 4, "I32": 4}
    return sum(math.prod(shape) * item[kind] for kind, shape in packed.kinds().values())
