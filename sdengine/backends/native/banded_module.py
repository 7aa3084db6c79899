"""Banded module: a network of which some maps are only there band by band; see `bands`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Array
from sdengine.backends.native.bands import BandPlan, Pass, Whole, Window, factors_name
from sdengine.backends.native.laid_out_network import LaidOutNetwork
from sdengine.backends.native.packed_cache import PackedWeights
from sdengine.backends.native.records import Map
from sdengine.backends.native.step import Step
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import ConfigError, DeviceError


class Moments:
    """Mean and deviations of each channel of a map, of which parts come one after the other.

    Source: "Updating formulae and a pairwise algorithm for computing sample variances" (Chan, Golub
    and LeVeque 1979), the sums of two samples from those of each.
    """

    def __init__(self) -> None:
        self._count = 0
        self._mean: Any = 0.0
        self._deviations: Any = 0.0

    def add(self, count: int, moments: NDArray[np.float64]) -> None:
        """Take in a part of so many pixels: [2, channels], means and squared distances."""
        mean, deviations = moments
        total = self._count + count
        gap = mean - self._mean
        self._deviations = self._deviations + deviations + gap**2 * self._count * count / total
        self._mean = self._mean + gap * count / total
        self._count = total

    def factors(self, step: Step, weight: Array, bias: Array) -> NDArray[np.float32]:
        """Return [1, 2 * channels]: what a norm multiplies each channel by, then adds to it."""
        groups = self._mean.reshape(step.groups, -1)
        mean = groups.mean(axis=1, keepdims=True)
        between = ((groups - mean) ** 2).mean(axis=1)
        within = self._deviations.reshape(step.groups, -1).mean(axis=1) / self._count
        inverse = 1.0 / np.sqrt(within + between + step.epsilon)
        per_channel = groups.shape[1]
        scale = weight * np.repeat(inverse, per_channel)
        shift = bias - np.repeat(mean[:, 0], per_channel) * scale
        return np.concatenate([scale, shift])[None].astype(np.float32)


class BandedModule:
    """One network for one image at a time, in bands; see `sdengine.backends.base.Module`.

    Every run lays out its memory anew and gives it back: maps of this size are not kept.

    Args:
        name: the network's.
        plan: how it is computed.
        packed: its weights.
        specs: its inputs.
        threads: that compute it.
    """

    def __init__(
        self,
        name: str,
        plan: BandPlan,
        packed: PackedWeights,
        specs: tuple[TensorSpec, ...],
        threads: int,
    ) -> None:
        self.name = name
        self.inputs = specs
        self.plan = plan
        self._packed: PackedWeights | None = packed
        self._threads = threads
        (port,) = plan.prepared.graph.outputs
        self._output = port
        size = plan.sizes[port.value]
        shape = (size.images, size.channels, size.height, size.width)
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec(port.name, shape, "float32"),)

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the output by name; the input must be given at its shape."""
        if self._packed is None:
            raise DeviceError(f"{self.name}: the network was closed.")
        (spec,) = self.inputs
        given = inputs.get(spec.name)
        if given is None:
            raise ConfigError(f"{self.name}: input {spec.name!r} is not given.")
        if given.shape != spec.shape:
            raise ConfigError(
                f"{self.name}: input {spec.name!r} is {list(given.shape)}; this network was loaded "
                f"for {list(spec.shape)}."
            )
        return {self._output.name: _Run(self.plan, self._packed, self._threads).result(given)}

    def band_bytes(self) -> int:
        """Return the most that its maps take: a plan of no more is the same plan again."""
        return self.plan.planned_bytes

    def close(self) -> None:
        """Forget the weights; a second call does nothing."""
        self._packed = None


class _Run:
    """One run: the map that is kept, and what is known of maps as a whole."""

    def __init__(self, plan: BandPlan, packed: PackedWeights, threads: int) -> None:
        self.plan = plan
        self.weights = packed.tensors
        self.threads = threads
        self.moments: dict[str, Moments] = {}
        graph = plan.prepared.graph
        self.images = {port.value for port in (*graph.inputs, *graph.outputs)}
        self.names = {port.value: port.name for port in (*graph.inputs, *graph.outputs)}
        self.read = {step.inputs["x"] for step in graph.steps if step.kind == "group_norm"}

    def result(self, kept: Array) -> Array:
        """Compute the network's output from its input."""
        for run in self.plan.runs:
            if isinstance(run, Whole):
                kept = self._whole(run, kept)
            elif run.target == run.unit.target:
                kept = self._bands(run, kept)
            else:
                self._look_through(run, kept)
        return kept

    def _whole(self, run: Whole, kept: Array) -> Array:
        unit = run.unit
        network = LaidOutNetwork(run.program, self.weights, self.threads)
        network.write({self._name(unit.source): kept})
        network.network.run()
        made = network.outputs[self._name(unit.target)]
        if unit.target in self.read:
            size = self.plan.sizes[unit.target]
            self._take(network, run.program.outputs[unit.target][0], unit.target, 0, size.height)
        kept = made.copy()
        return kept

    def _look_through(self, run: Pass, kept: Array) -> None:
        """Compute a value band by band for its moments alone."""
        network = LaidOutNetwork(run.program, self.weights, self.threads)
        factors = self._factors(run)
        for window in run.windows:
            self._compute(network, run, window, self._rows(run, kept, window.first), factors)
            self._take_owned(network, run, window)

    def _bands(self, run: Pass, kept: Array) -> Array:
        """Compute a unit's target band by band, in its source's place where both are of one size.

        What a band overwrites the next one still reads: its source is copied first.
        """
        unit, sizes = run.unit, self.plan.sizes
        network = LaidOutNetwork(run.program, self.weights, self.threads)
        factors = self._factors(run)
        made = kept
        if not self.plan.in_place(unit):
            n, height, width, channels = sizes[unit.target]
            is_image = unit.target in self.images
            shape = (n, channels, height, width) if is_image else (n, height, width, channels)
            made = np.empty(shape, np.float32 if is_image else self._dtype())
        before = run.windows[0].first
        band = self._rows(run, kept, before).copy()
        source_axis, height = self._row_axis(unit.source), sizes[unit.source].height
        beyond = _rows_around(kept, source_axis, height, height + run.rows_beyond(height))
        reach = unit.reaches()
        assert reach is not None
        scale = reach[unit.target].scale
        axis = self._row_axis(unit.target)
        for window in run.windows:
            held = before + run.rows - window.first  # rows that the last band had, too
            if window.first > before:
                first, last = before + run.rows, window.first + run.rows
                parts = (
                    _rows_of(band, source_axis, run.rows - held, run.rows),
                    _rows_of(kept, source_axis, min(first, height), min(last, height)),
                    _rows_of(beyond, source_axis, max(first - height, 0), max(last - height, 0)),
                )
                band = np.concatenate(parts, axis=source_axis)
                before = window.first
            self._compute(network, run, window, band, factors)
            if unit.target in self.read:
                self._take_owned(network, run, window)
            first, last = window.owned[unit.target]
            origin = int(window.first * scale)
            found = network.outputs[self._name(unit.target)]
            rows = _rows_of(found, axis, first - origin, last - origin)
            _rows_of(made, axis, first, last)[...] = rows
        return made

    def _compute(
        self,
        network: LaidOutNetwork,
        run: Pass,
        window: Window,
        band: Array,
        factors: Mapping[str, Array],
    ) -> None:
        network.write({self._name(run.unit.source): band, **factors})
        network.network.run()

    def _take_owned(self, network: LaidOutNetwork, run: Pass, window: Window) -> None:
        reach = run.unit.reaches()
        assert reach is not None
        origin = int(window.first * reach[run.target].scale)
        first, last = window.owned[run.target]
        one = run.program.outputs[run.target][0]
        self._take(network, one, run.target, first - origin, last - origin)

    def _take(self, network: LaidOutNetwork, one: Map, value: str, first: int, last: int) -> None:
        """Add some rows of a map to what is known of the whole value."""
        item = 4 if one["type"] == "float32" else 2
        offset = one["offset"] + first * one["width"] * one["stride"] * item
        part: Map = {**one, "offset": offset, "height": last - first}
        pixels = (last - first) * one["width"]
        self.moments.setdefault(value, Moments()).add(pixels, network.network.moments(part))

    def _factors(self, run: Pass) -> dict[str, Array]:
        """Return scales and shifts of the norms that a pass reads."""
        found = {}
        for norm in run.unit.norms:
            name = factors_name(norm.output)
            if name in run.program.inputs:
                weight, bias = (self.weights[norm.weights[role]] for role in ("weight", "bias"))
                found[name] = self.moments[norm.inputs["x"]].factors(norm, weight, bias)
        return found

    def _rows(self, run: Pass, kept: Array, first: int) -> Array:
        axis = self._row_axis(run.unit.source)
        if first >= 0 and first + run.rows <= kept.shape[axis]:
            return _rows_of(kept, axis, first, first + run.rows)
        return _rows_around(kept, axis, first, first + run.rows)

    def _row_axis(self, value: str) -> int:
        return 2 if value in self.images else 1

    def _name(self, value: str) -> str:
        return self.names.get(value, value)

    def _dtype(self) -> Any:
        return np.uint16 if self.plan.prepared.dtype == "bfloat16" else np.float32


def _rows_of(values: Array, axis: int, first: int, last: int) -> Array:
    return values[:, first:last] if axis == 1 else values[:, :, first:last]


def _rows_around(values: Array, axis: int, first: int, last: int) -> Array:
    """Copy rows of a map that goes on before its first row with its last one, and so on."""
    found: Array = values.take(np.arange(first, last) % values.shape[axis], axis=axis)
    return found
