"""Layout of a graph for given shapes: where every map lies, and the records that the kernels run.

What `concat` and `stack` join, and what `slice` and `cut` take, is written and read where it lies;
only a value that is joined twice is copied. Everything lies in one arena, planned by what is alive
when.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from sdengine import _native
from sdengine.backends.native.graph import Graph, Port
from sdengine.backends.native.map_sizes import map_sizes, port_shape
from sdengine.backends.native.operations import OPERATIONS, make_record
from sdengine.backends.native.records import (
    ITEM_BYTES,
    Map,
    Record,
    copy_record,
    make_map,
    pixel_strides,
)
from sdengine.backends.native.size_rules import Size
from sdengine.backends.native.step import Step

_CACHE_LINE_BYTES = 64
_Region = tuple[str, int, int, int]


@dataclass
class Program:
    """What runs a network at one shape.

    Args:
        records: the operations, as `_native.Network` takes them.
        arena_bytes: for all maps.
        inputs: by name, the map that an input is written to and the shape to see it in; the
            array's own shape is that or a transposition that the records undo.
        outputs: by name, the map that holds an output and its shape outside.
        constants: maps to fill once, by the weight that they hold.
    """

    records: list[Record]
    arena_bytes: int
    inputs: dict[str, Map]
    outputs: dict[str, tuple[Map, tuple[int, ...]]]
    constants: list[tuple[Map, str]]


class _Place(NamedTuple):
    """Where a value lies: in another's map, from an image and a channel on."""

    parent: str
    image: int
    channel: int


def lay_out(graph: Graph, shapes: Mapping[str, tuple[int, ...]], dtype: str) -> Program:
    """Lay a graph out for the shapes of its inputs.

    Args:
        graph: a network, as `plan_packing` returns it; another can be laid out, but not run.
        shapes: shape of each input, by name.
        dtype: of the maps, "float32" or "bfloat16".

    Raises:
        BundleError: the graph does not fit the shapes.
    """
    return _Layout(graph, map_sizes(graph, shapes), dtype).program(shapes)


@dataclass
class _Layout:
    graph: Graph
    sizes: dict[str, Size]
    dtype: str
    places: dict[str, _Place] = field(default_factory=dict)
    copied: dict[str, list[tuple[int, str, _Place]]] = field(default_factory=dict)
    # By the value or the crossing that it holds: name, bytes, first and last moment in use.
    regions: dict[str, _Region] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.graph.steps
        self.readers = Counter(value for step in steps for value in step.inputs.values())
        self.maker = {step.output: step for step in steps}
        self.outside = {port.value for port in self.graph.outputs if port.layout != "map"}
        self.types = {port.value: self._input_type(port) for port in self.graph.inputs}
        for step in steps:
            self._join(step)
            self.types[step.output] = self._output_type(step)

    def _input_type(self, port: Port) -> str:
        if port.dtype == "int64":
            return "int64"
        if port.layout == "map":
            return self.dtype
        readers = [step.kind for step in self.graph.steps if port.value in step.inputs.values()]
        # A timestep of 999 has ten bits, of which bf16 would keep eight.
        exact = bool(readers) and all(OPERATIONS[kind].keeps_fp32 for kind in readers)
        return "float32" if exact else self.dtype

    def _output_type(self, step: Step) -> str:
        alone = step.output in self.outside and not self.readers[step.output]
        return "float32" if alone and OPERATIONS[step.kind].can_widen else self.dtype

    def _join(self, step: Step) -> None:
        """Let what a step joins or takes lie in one map."""
        if step.kind == "slice":
            x = self.sizes[step.inputs["x"]]
            image = step.first * (x.images // step.parts)
            self.places[step.output] = _Place(step.inputs["x"], image, 0)
        if step.kind == "cut":
            self.places[step.output] = _Place(step.inputs["x"], 0, step.first)
        if step.kind not in ("concat", "stack"):
            return
        image = channel = 0
        for role in sorted(step.inputs):
            value = step.inputs[role]
            place = _Place(step.output, image, channel)
            if value in self.places or self.types.get(value) != self.dtype:
                self.copied.setdefault(step.output, []).append((image, value, place))
            else:
                self.places[value] = place
            image += self.sizes[value].images if step.kind == "stack" else 0
            channel += self.sizes[value].channels if step.kind == "concat" else 0

    def _root(self, value: str) -> tuple[str, int, int]:
        """Return the value in whose memory another lies, and from which image and channel on."""
        image = channel = 0
        while value in self.places:
            place = self.places[value]
            image, channel, value = image + place.image, channel + place.channel, place.parent
        return value, image, channel

    def _map(self, value: str) -> Map:
        root, image, channel = self._root(value)
        size, whole = self.sizes[value], self.sizes[root]
        item = ITEM_BYTES[self.types[root]]
        start = image * whole.height * whole.width * whole.channels + channel
        offset = self.offsets[root] + start * item
        return make_map(offset, self.types[root], size, whole.channels)

    def _needs_region(self, port: Port, is_input: bool) -> bool:
        """Whether what is outside differs from the map inside."""
        if port.layout == "image":
            return True
        if port.layout == "map":
            return False
        wanted = "int64" if port.dtype == "int64" else "float32"
        if self.types[self._root(port.value)[0]] != wanted:
            return True
        # An output is one block; inputs may be written with gaps between their rows.
        return not is_input and port.value in self.places

    def program(self, shapes: Mapping[str, tuple[int, ...]]) -> Program:
        self._plan()
        records: list[Record] = []
        inputs, outputs = {}, {}
        for port in self.graph.inputs:
            if self._needs_region(port, True):
                region, copy = self._cross(port, f"input {port.name}", inward=True)
                inputs[port.name] = region
                records.append(copy)
            else:
                inputs[port.name] = self._map(port.value)
        constants = []
        for step in self.graph.steps:
            if step.kind == "constant":
                constants.append((self._map(step.output), step.weights["values"]))
            for _, value, place in self.copied.get(step.output, []):
                records.append(self._copy_into(step, value, place))
            if not OPERATIONS[step.kind].is_view:
                maps = {role: self._map(value) for role, value in step.inputs.items()}
                records.append(make_record(step, {**maps, "out": self._map(step.output)}))
        images = shapes[self.graph.inputs[0].name][0]
        for port in self.graph.outputs:
            shape = port_shape(port, self.sizes[port.value], images)
            if self._needs_region(port, False):
                region, copy = self._cross(port, f"output {port.name}", inward=False)
                records.append(copy)
            else:
                region = self._map(port.value)
            outputs[port.name] = (region, shape)
        return Program(records, self.total, inputs, outputs, constants)

    def _plan(self) -> None:
        """Place every map that is not part of another, and what crosses to the outside."""
        end = len(self.graph.steps) + 1
        spans: dict[str, list[int]] = {}

        def use(value: str, moment: int) -> None:
            spans.setdefault(self._root(value)[0], []).append(moment)

        for port in self.graph.inputs:
            use(port.value, 0)
        for moment, step in enumerate(self.graph.steps, 1):
            for value in (*step.inputs.values(), step.output):
                use(value, moment)
            if step.kind == "constant":  # written once, so nothing may overwrite it
                spans[self._root(step.output)[0]] += [0, end]
        for port in self.graph.outputs:
            use(port.value, end)
        for root, moments in spans.items():
            size = self.sizes[root].elements * ITEM_BYTES[self.types[root]]
            self.regions[root] = (root, size, min(moments), max(moments))
        for port in self.graph.inputs:
            if self._needs_region(port, True):
                self._add_region(f"input {port.name}", port, 0)
        for port in self.graph.outputs:
            if self._needs_region(port, False):
                self._add_region(f"output {port.name}", port, end)
        regions = list(self.regions.values())
        self.total, offsets = _native.plan_regions(regions, _CACHE_LINE_BYTES)
        self.offsets = dict(zip(self.regions, offsets, strict=True))

    def _add_region(self, key: str, port: Port, moment: int) -> None:
        size = self.sizes[port.value].elements * ITEM_BYTES[port.dtype]
        self.regions[key] = (key, size, moment, moment)

    def _cross(self, port: Port, key: str, *, inward: bool) -> tuple[Map, Record]:
        """Return the map of what is outside, and the copy between it and the value."""
        size, inner = self.sizes[port.value], self._map(port.value)
        n, height, width, channels = size
        if port.layout == "image":
            outer_size = Size(n, channels, height, width)
            outer_strides = [channels * height * width, width, 1, height * width]
        else:
            outer_size = size
            outer_strides = [height * width * channels, width * channels, channels, 1]
        outer = make_map(self.offsets[key], port.dtype, outer_size, outer_size.channels)
        pair = (outer, outer_strides), (inner, pixel_strides(size, inner["stride"]))
        source, target = pair if inward else pair[::-1]
        return outer, copy_record(key, size, source, target)

    def _copy_into(self, step: Step, value: str, place: _Place) -> Record:
        """Copy what cannot lie in the joined map itself, because it lies in another already."""
        size, joined, source = self.sizes[value], self._map(step.output), self._map(value)
        per_image = joined["height"] * joined["width"] * joined["stride"]
        item = ITEM_BYTES[joined["type"]]
        offset = joined["offset"] + (place.image * per_image + place.channel) * item
        target = make_map(offset, joined["type"], size, joined["stride"])
        return copy_record(
            step.name,
            size,
            (source, pixel_strides(size, source["stride"])),
            (target, pixel_strides(size, joined["stride"])),
        )
