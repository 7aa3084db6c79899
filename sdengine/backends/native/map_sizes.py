"""Sizes of a graph's feature maps, which follow from those of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from sdengine.backends.native.graph import Graph, Port, Step
from sdengine.bundle.tensors import MAX_ELEMENTS
from sdengine.errors import BundleError


class Size(NamedTuple):
    """[images, height, width, channels] of a map."""

    images: int
    height: int
    width: int
    channels: int

    @property
    def rows(self) -> int:
        """Pixels of all images."""
        return self.images * self.height * self.width

    @property
    def elements(self) -> int:
        """Values."""
        return self.rows * self.channels


def map_sizes(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Size]:
    """Return the size of every value.

    Args:
        graph: a network.
        shapes: shape of each input, by name, as they are outside.

    Raises:
        BundleError: an input's shape does not fit, or a step's inputs do not fit together.
    """
    sizes: dict[str, Size] = {}
    for port in graph.inputs:
        if port.name not in shapes:
            raise BundleError(f"{graph.network}: the graph reads {port.name!r}, which is no input.")
        sizes[port.value] = _port_size(graph.network, port, shapes[port.name])
    for step in graph.steps:
        size = _output_size(step, {role: sizes[value] for role, value in step.inputs.items()})
        if min(size) < 1 or size.elements > MAX_ELEMENTS:
            _refuse(step, f"would make a map of {list(size)}")
        sizes[step.output] = size
    for port in graph.outputs:
        size = sizes[port.value]
        if size.channels != port.channels:
            raise BundleError(f"{graph.network}: output {port.name!r} would be {list(size)}.")
    return sizes


def port_shape(port: Port, size: Size, images: int) -> tuple[int, ...]:
    """Return the shape outside of an output.

    Args:
        port: the output.
        size: of its value.
        images: of the request, of which layers have so many each.
    """
    n, height, width, channels = size
    if port.layout == "image":
        return n, channels, height, width
    full = (n // images, images, height * width, channels)
    return {
        1: (n,),
        2: (n, channels),
        3: (n, height * width, channels),
        4: full,
    }[port.rank]


def _port_size(network: str, port: Port, shape: tuple[int, ...]) -> Size:
    fits = len(shape) == port.rank and all(side >= 1 for side in shape)
    if fits and port.layout == "image":
        n, channels, height, width = shape
        size = Size(n, height, width, channels)
    elif fits:
        padded = {1: (1, *shape, 1, 1), 2: (1, shape[0], 1, shape[-1])}.get(len(shape))
        layers, n, tokens, channels = padded or (1,) * (4 - len(shape)) + tuple(shape)
        size = Size(layers * n, 1, tokens, channels)
    if not fits or size.channels != port.channels:
        raise BundleError(
            f"{network}: input {port.name!r} is {list(shape)}; the graph was made for rank "
            f"{port.rank} with {port.channels} channels."
        )
    return size


def _output_size(step: Step, inputs: Mapping[str, Size]) -> Size:
    size = _own_size(step, inputs)
    for role, expected in (("residual", size), ("per_image", Size(size.images, 1, 1, size[3]))):
        if role in inputs and inputs[role] != expected:
            _refuse(step, f"has a {role} of {list(inputs[role])} beside {list(size)}")
    return size


def _own_size(step: Step, inputs: Mapping[str, Size]) -> Size:
    kind = step.kind
    if kind == "constant":
        return Size(1, 1, step.first, step.channels)
    if kind in ("concat", "stack"):
        return _joined(step, [inputs[role] for role in sorted(inputs)])
    first = {"attention": "q", "add": "a"}.get(kind, "x")
    if first not in inputs:
        _refuse(step, f"lacks the input {first!r}")
    x = inputs[first]
    if kind == "linear":
        return x._replace(channels=step.channels)
    if kind == "conv":
        factor = 2 if step.upsample else 1
        height, width = (
            (side * factor + 2 * step.pad + step.after - step.kernel) // step.step + 1
            for side in (x.height, x.width)
        )
        return Size(x.images, height, width, step.channels)
    if kind == "attention":
        _check_attention(step, inputs)
    if kind == "add":
        b = inputs.get("b")
        same_map = b is not None and b[1:] == x[1:] and b.images in (1, x.images)
        if not same_map and b != Size(x.images, 1, 1, x.channels):
            _refuse(step, f"adds {b and list(b)} to {list(x)}")
    if kind == "sinusoid":
        if x.height * x.width != 1:
            _refuse(step, f"reads {list(x)}")
        return x._replace(channels=2 * step.channels * x.channels)
    if kind == "select":
        if inputs.get("index") != Size(x.images, 1, 1, 1):
            _refuse(step, "has no index for each image")
        return Size(x.images, 1, 1, x.channels)
    if kind == "cut":
        if step.first + step.channels > x.channels:
            _refuse(
                step, f"takes channels {step.first} to {step.first + step.channels} of {list(x)}"
            )
        return x._replace(channels=step.channels)
    if kind == "slice":
        if step.parts < 1 or x.images % step.parts or step.first >= step.parts:
            _refuse(step, f"takes part {step.first} of {step.parts} of {x.images} images")
        return x._replace(images=x.images // step.parts)
    return x


def _joined(step: Step, parts: list[Size]) -> Size:
    if not parts:
        _refuse(step, "has no inputs")
    first = parts[0]
    if step.kind == "concat":
        if any(part[:3] != first[:3] for part in parts):
            _refuse(step, f"joins {[list(part) for part in parts]}")
        return first._replace(channels=sum(part.channels for part in parts))
    if any(part[1:] != first[1:] for part in parts):
        _refuse(step, f"stacks {[list(part) for part in parts]}")
    return first._replace(images=sum(part.images for part in parts))


def _check_attention(step: Step, inputs: Mapping[str, Size]) -> None:
    if not {"q", "k", "v"} <= inputs.keys():
        _refuse(step, "lacks queries, keys or values")
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    if k != v or q.images != k.images or q.channels != k.channels or q.channels % step.heads:
        _refuse(step, f"has {step.heads} heads of {list(q)}, {list(k)}, {list(v)}")


def _refuse(step: Step, problem: str) -> NoReturn:
    raise BundleError(f"step {step.name!r} ({step.kind}) {problem}.")
