"""Sizes of a graph's feature maps, which follow from those of its inputs."""

from __future__ import annotations

from collections.abc import Mapping

from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.operations import OPERATIONS
from sdengine.backends.native.size_rules import Size, Sizes, refuse
from sdengine.backends.native.step import Step
from sdengine.bundle.tensors import MAX_ELEMENTS
from sdengine.errors import BundleError


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
            refuse(step, f"would make a map of {list(size)}")
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
    if port.layout == "map":
        return n, height, width, channels
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
    elif fits and port.layout == "map":
        size = Size(*shape)
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


def _output_size(step: Step, inputs: Sizes) -> Size:
    size = OPERATIONS[step.kind].size(step, inputs)
    for role, expected in (("residual", size), ("per_image", Size(size.images, 1, 1, size[3]))):
        if role in inputs and inputs[role] != expected:
            refuse(step, f"has a {role} of {list(inputs[role])} beside {list(size)}")
    return size
