"""Methods of products: in which numbers, and by which tiles, each of them is computed."""

from __future__ import annotations

from collections.abc import Collection

from sdengine.backends.native.graph import Graph
from sdengine.backends.native.operations import PRODUCTS
from sdengine.backends.native.packing import packed_bytes, packed_weight
from sdengine.backends.native.projections import join_projections
from sdengine.backends.native.size_rules import Size, Sizes
from sdengine.backends.native.step import Step

# Convolutions of fewer input channels are gathered: a transformed tile would be mostly padding.
_LEAST_WINOGRAD_CHANNELS = 16
_LEAST_INT8_CHANNELS = 64
# Where a map is so much smaller than the network's largest input, in pixels, and has so many
# channels, small tiles: their weights take less than half the memory, and reading those of large
# tiles takes about as long as the multiplications that they save. U-Nets' lowest levels are such.
_COARSE, _COARSE_CHANNELS = 16, 1280


def choose_methods(
    graph: Graph,
    sizes: Sizes,
    precision: str,
    *,
    int16: bool = False,
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
        int16: instead of bf16, multiply 16-bit integers with a scale for each row and output
            feature: more exact, and faster where bf16 has no products of its own.
        exact: outputs of steps that are computed neither in 8 bits nor by transforms, because a
            build found their error too large.
        weight_bytes: the most that packed weights may take; convolutions, the largest first, are
            computed with smaller tiles, then without transforms, until they take no more. None
            for no limit.
    """
    floats = "float32" if precision == "fp32" else "int16" if int16 else "bfloat16"
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


def wrapping(graph: Graph, axes: str) -> Graph:
    """Let the edges of every map meet along some axes, for convolutions that look beyond them.

    Args:
        graph: a network.
        axes: "none", "x", "y" or "xy".
    """
    steps = tuple(
        step.model_copy(update={"wraps": axes}) if step.kind == "conv" else step
        for step in graph.steps
    )
    return graph.model_copy(update={"steps": steps})


def _plainly(step: Step, floats: str) -> Step:
    if step.kind not in PRODUCTS:
        return step
    return step.model_copy(update={"weight_kind": floats})


def _with_method(step: Step, sizes: Sizes, precision: str, floats: str, given: set[str]) -> Step:
    if step.kind not in PRODUCTS:
        return step
    x = sizes[step.inputs["x"]]
    if step.kind == "linear":
        # What reads few channels, such as latents, has little to win.
        eight_bits = not steers(step, sizes, given) and x.channels >= _LEAST_INT8_CHANNELS
        kind = "int8" if precision == "int8" and eight_bits else floats
        return step.model_copy(update={"weight_kind": kind})
    plain = (step.kernel, step.stride, step.padding, step.padding_after) == (3, 1, 1, 0)
    many = x.channels >= _LEAST_WINOGRAD_CHANNELS
    if plain and many and step.activation in ("none", "relu"):
        kind = "float32" if precision == "fp32" else "int16"
        largest = max((_pixels(sizes[name]) for name in given), default=0)
        coarse = _pixels(sizes[step.output]) * _COARSE <= largest
        small = coarse and x.channels >= _COARSE_CHANNELS
        return step.model_copy(update={"weight_kind": kind, "tile": 2 if small else 4})
    return step.model_copy(update={"weight_kind": floats})


def steers(step: Step, sizes: Sizes, given: Collection[str]) -> bool:
    """Say whether a product reads what steers every pixel of an image, and so stays exact.

    That is a row such as the time embedding's, or an input of the network, such as the prompt.
    """
    x = sizes[step.inputs["x"]]
    return x.height * x.width == 1 or step.inputs["x"] in given


def _pixels(size: Size) -> int:
    return size.height * size.width


def _shrink(steps: list[Step], sizes: Sizes, floats: str, limit: int) -> None:
    """Take smaller tiles, then none, for the largest convolutions until the weights fit."""

    def size_of(step: Step) -> int:
        return packed_bytes((packed_weight(step, "weight", sizes),))

    total = sum(size_of(step) for step in steps if step.kind in PRODUCTS)
    for tile in (2, 0):
        order = sorted((i for i, s in enumerate(steps) if s.tile), key=lambda i: -size_of(steps[i]))
        for index in order:
            if total <= limit:
                return
            step = steps[index]
            kind = step.weight_kind if tile else floats
            steps[index] = step.model_copy(update={"tile": tile, "weight_kind": kind})
            total += size_of(steps[index]) - size_of(step)
