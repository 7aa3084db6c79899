"""Bands of a network's largest maps: the same result in a fraction of the memory.

A VAE's memory goes into maps of the picture's full size, of which several are there at a time.
Here each of its largest units is computed band by band, so that at most one such map is kept, in
the place of the one before it where they are of one size. What a GroupNorm needs of the whole map
comes first: the unit's bands are computed up to it, added up and thrown away. So the picture is
that of the whole maps but for the rounding of these sums; attention, and what is small, is
computed as a whole.

What is computed again costs time: a decoder with its last two levels in bands takes 1.6 to 1.9
times the processor's, an encoder 1.2 to 1.4 times. So units are taken, the largest first, only
until a limit is met.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from sdengine.backends.native.layout import Program, lay_out
from sdengine.backends.native.map_sizes import map_sizes
from sdengine.backends.native.methods import wrapping
from sdengine.backends.native.prepare import Prepared
from sdengine.backends.native.records import ITEM_BYTES
from sdengine.backends.native.size_rules import Sizes
from sdengine.backends.native.units import Reach, Unit, split_units

BAND_ROWS = 64  # of the largest map of a unit
# Tiles of transformed convolutions begin at multiples of four rows, in bands as in whole maps, also
# where the rows are halved.
_ALIGNED = 8


@dataclass(frozen=True)
class Window:
    """One band: rows of the source, and for each value those that are right in this band alone.

    Where rows wrap, a band may begin before the first one and end behind the last one.
    """

    first: int
    owned: Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Pass:
    """A run over all bands of a unit.

    Args:
        unit: whose.
        target: the value that it is for: the unit's own, or one that a norm reads.
        rows: of the source, in each band.
        windows: the bands.
        program: that computes one.
    """

    unit: Unit
    target: str
    rows: int
    windows: tuple[Window, ...]
    program: Program

    def rows_beyond(self, height: int) -> int:
        """Return how many rows the last band has behind the last of the source's."""
        return max(self.windows[-1].first + self.rows - height, 0)


@dataclass(frozen=True)
class Whole:
    """A run of some units on whole maps."""

    unit: Unit
    program: Program


class BandPlan:
    """How a network is computed: which units in bands, which as a whole, and what that takes.

    Args:
        prepared: the network, for one image.
        units: of it.
        banded: the places of those that are computed in bands.
    """

    def __init__(self, prepared: Prepared, units: list[Unit], banded: frozenset[int]) -> None:
        self.prepared = prepared
        self.sizes: Sizes = map_sizes(prepared.graph, prepared.shapes)
        self.runs: list[Pass | Whole] = []
        place = 0
        while place < len(units):
            if place in banded:
                self.runs += self._passes(units[place])
                place += 1
                continue
            end = place
            while end < len(units) and end not in banded:
                end += 1
            joined = _joined(units[place:end])
            self.runs.append(Whole(joined, self._program(joined, joined.target, None)))
            place = end

    @cached_property
    def planned_bytes(self) -> int:
        """The most that maps take at any moment: kept ones, and those of the run."""
        return max(self._bytes_during(run) for run in self.runs)

    def map_bytes(self, value: str) -> int:
        """Return what a kept map takes; inputs and outputs of the network are fp32."""
        return self.sizes[value].elements * self.item_bytes(value)

    def item_bytes(self, value: str) -> int:
        """Return the bytes of one number of a kept map."""
        graph = self.prepared.graph
        outside = {port.value for port in (*graph.inputs, *graph.outputs)}
        return ITEM_BYTES["float32" if value in outside else self.prepared.dtype]

    def in_place(self, unit: Unit) -> bool:
        """Say whether a unit's result takes its source's place."""
        same = self.sizes[unit.source] == self.sizes[unit.target]
        return same and not self._is_outside(unit.source) and not self._is_outside(unit.target)

    def _is_outside(self, value: str) -> bool:
        graph = self.prepared.graph
        return any(port.value == value for port in (*graph.inputs, *graph.outputs))

    def _bytes_during(self, run: Pass | Whole) -> int:
        unit = run.unit
        kept = self.map_bytes(unit.source)
        is_last = isinstance(run, Whole) or run.target == unit.target
        if is_last and not (isinstance(run, Pass) and self.in_place(unit)):
            kept += self.map_bytes(unit.target)
        if isinstance(run, Pass):  # a copy of the band, and of rows that it wraps around to
            height = self.sizes[unit.source].height
            rows = run.rows + (run.rows_beyond(height) if is_last else 0)
            kept += self.map_bytes(unit.source) * rows // height
        return kept + run.program.arena_bytes

    def _passes(self, unit: Unit) -> Iterator[Pass]:
        reaches = unit.reaches()
        assert reaches is not None
        height = self.sizes[unit.source].height
        rows, windows = _windows(unit, reaches, height, wraps="y" in self.prepared.wraps)
        inside = [n.inputs["x"] for n in unit.norms if n.inputs["x"] != unit.source]
        for target in dict.fromkeys([*inside, unit.target]):
            own = tuple(one for one in windows if one.owned[target][0] < one.owned[target][1])
            yield Pass(unit, target, rows, own, self._program(unit, target, rows))

    def _program(self, unit: Unit, target: str, rows: int | None) -> Program:
        """Lay out what a value follows from, on bands of so many rows, or on whole maps."""
        norms = {} if rows is None else {n.output: factors_name(n.output) for n in unit.norms}
        graph = unit.graph(self.prepared.graph, self.sizes, target, norms)
        if rows is not None and self.prepared.wraps == "xy":
            graph = wrapping(graph, "x")
        elif rows is not None and self.prepared.wraps == "y":
            graph = wrapping(graph, "none")
        source = self.sizes[unit.source]
        size = source if rows is None else source._replace(height=rows)
        shapes: dict[str, tuple[int, ...]] = {}
        for port in graph.inputs:
            if port.layout == "rows":
                shapes[port.name] = (1, port.channels)
            elif port.layout == "image":
                shapes[port.name] = (size.images, size.channels, size.height, size.width)
            else:
                shapes[port.name] = tuple(size)
        return lay_out(graph, shapes, self.prepared.dtype)


def factors_name(value: str) -> str:
    """Return the input that scales and shifts of a norm come by."""
    return f"factors of {value}"


def plan_bands(prepared: Prepared, limit_bytes: int | None) -> BandPlan | None:
    """Find the plan with the fewest bands that takes no more than a limit, or the least there is.

    Args:
        prepared: a network for one image.
        limit_bytes: for maps; None asks for the least that bands take.

    Returns:
        None where nothing of the network can be computed in bands, or where there is a limit and
        bands of so few rows would take more than whole maps.
    """
    sizes = map_sizes(prepared.graph, prepared.shapes)
    units = split_units(prepared.graph, sizes)
    if units is None or sizes[units[0].source].images != 1:
        return None
    found: list[BandPlan] = []
    banded: frozenset[int] = frozenset()
    for places in _largest_first(units, sizes):
        banded |= places
        found.append(BandPlan(prepared, units, banded))
        if limit_bytes is not None and found[-1].planned_bytes <= limit_bytes:
            return found[-1]
    least = min(found, key=lambda one: one.planned_bytes, default=None)
    if least is None or limit_bytes is None:
        return least
    return least if least.planned_bytes < prepared.program().arena_bytes else None


def _largest_first(units: list[Unit], sizes: Sizes) -> list[frozenset[int]]:
    """Return the places of the units that may be in bands, by the largest of their maps."""
    places: dict[int, set[int]] = {}
    for place, unit in enumerate(units):
        reaches, height = unit.reaches(), sizes[unit.source].height
        if reaches is None or height < 2 * _ALIGNED:
            continue
        if all(sizes[value].height == height * one.scale for value, one in reaches.items()):
            largest = max(sizes[step.output].elements for step in unit.steps)
            places.setdefault(largest, set()).add(place)
    return [frozenset(places[elements]) for elements in sorted(places, reverse=True)]


def _joined(units: list[Unit]) -> Unit:
    steps = tuple(step for unit in units for step in unit.steps)
    return Unit(steps, units[0].source, units[-1].target)


def _windows(
    unit: Unit, reaches: Mapping[str, Reach], height: int, *, wraps: bool
) -> tuple[int, tuple[Window, ...]]:
    """Place bands over a source so that every row of every value is right in one of them.

    Bands are all of one size: the last one is moved back to end with the map, or where rows wrap
    as far behind its end as the first one begins before the map.
    """
    asked = {unit.target, *(norm.inputs["x"] for norm in unit.norms)}
    wanted = {value: reaches[value] for value in asked}
    shared = _aligned(max(ceil(2 * one.margin / one.scale) for one in wanted.values()))
    finest = max(one.scale for one in reaches.values())
    rows, around = _aligned(max(int(BAND_ROWS / finest), shared + _ALIGNED)), 0
    if wraps:
        around = _aligned(shared // 2)
    else:
        rows = min(rows, height)
    starts, end = [-around], (_aligned(height) if wraps else height) + around
    while starts[-1] + rows < end:
        starts.append(min(starts[-1] + rows - shared, end - rows))
    windows = []
    before = dict.fromkeys(wanted, 0)
    for first in starts:
        is_edge = not wraps and first + rows == height
        ends = {
            value: min(
                int((first + rows) * one.scale) - (0 if is_edge else one.margin),
                int(height * one.scale),
            )
            for value, one in wanted.items()
        }
        windows.append(Window(first, {value: (before[value], ends[value]) for value in wanted}))
        before = ends
    return rows, tuple(windows)


def _aligned(rows: int) -> int:
    return -(-rows // _ALIGNED) * _ALIGNED
