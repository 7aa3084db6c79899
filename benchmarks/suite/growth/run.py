"""Growth: how time and memory grow with pixels, pictures, steps, prompt, ControlNets and LoRAs.

Each point of an axis has a process of its own, so that its memory is its alone; while they are
timed, the processes of an axis take turns where all of them fit into memory.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from sdengine.benchmarks.bundles import Progress, check_memory
from sdengine.benchmarks.cases import native_side
from sdengine.benchmarks.gpu import require_backends
from sdengine.benchmarks.measures import BUSY_PERCENT, OtherLoad, Spread
from sdengine.benchmarks.suite.growth.bundles import growth_bundle, growth_loras
from sdengine.benchmarks.suite.growth.fits import linear_fit, power_fit
from sdengine.benchmarks.suite.growth.point import Point, PointProcess
from sdengine.benchmarks.suite.setting import Setting
from sdengine.errors import ConfigError, DeviceError, OutOfMemoryError

KIND = "growth"
AXES = ("pixels", "batch", "steps", "chunks", "controls", "loras")
# Whose cost may also be a fixed part and the same again for each.
LINEAR = AXES[1:]
BACKENDS = ("native", "openvino", "torch")
PEAK = "peak_bytes"
_SIDES = {
    "demo": (64, 128, 192, 256, 384),
    "tiny": (64, 128, 192, 256),
    "sd15": (256, 384, 512, 768),
    "sd21": (384, 512, 768, 1024),
    "sdxl": (512, 768, 1024),
}
_SMALL = ("demo", "tiny")
_BATCHES = (1, 2, 4)
_CHUNKS = (1, 2, 3, 4)
_CONTROLS = (0, 1, 2, 3)
_LORAS = (0, 1, 2, 4)
# A ControlNet's weights in fp16.
_CONTROLNET_GB = {"sd15": 0.73, "sd21": 0.73, "sdxl": 2.5}
# A runtime's idle threads spin for a while; they must not take the next process's cores.
_SETTLE_SECONDS = 0.3
# Left to the system and to what a request takes beyond the first one.
_SPARE = 1.5
# Beyond these in percent runs differ too much for small differences to mean anything.
_MOST_SPREAD, _MOST_DRIFT = 10.0, 5.0


@dataclass(frozen=True)
class Growth:
    """Describe what is measured; constructing it refuses what cannot be.

    Args:
        arch: a key of NATIVE_SIDES; all but "demo" have seeded synthetic weights.
        axes: some of AXES; None is all.
        backend: one of BACKENDS.
        precision: as `sdengine.load` takes it.
        threads: of every process, or None for the runtime's choice.
        runs: counted requests of each point, after the first.
        steps: of requests on all other axes.
        values: of an axis in place of its own: sides in pixels for "pixels", else counts.
    """

    arch: str = "demo"
    axes: tuple[str, ...] | None = None
    backend: str = "native"
    precision: str = "auto"
    threads: int | None = None
    runs: int = 5
    steps: int | None = None
    values: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check everything now: building comes first and may take minutes."""
        native_side(self.arch)
        if self.backend not in BACKENDS:
            raise ConfigError.for_field("backend", self.backend, ", ".join(BACKENDS))
        if not 1 <= self.runs <= 1000:
            raise ConfigError.for_field("runs", self.runs, "an integer from 1 to 1000")
        if self.axes == ():
            raise ConfigError.for_field("axes", "", f"some of {', '.join(AXES)}")
        for axis in self.axes or ():
            if axis not in AXES:
                raise ConfigError.for_field("axes", axis, f"some of {', '.join(AXES)}")
        self.setting()
        for axis in self.measured:
            for value in self.values_of(axis):
                self.setting(axis, value).request()
        from sdengine.backends import get_backend

        get_backend(self.backend).resolve(self.precision)

    @property
    def measured(self) -> tuple[str, ...]:
        """The axes, in their order."""
        return tuple(axis for axis in AXES if self.axes is None or axis in self.axes)

    def values_of(self, axis: str) -> Sequence[int]:
        """Return an axis's values, ascending; of "pixels" the sides."""
        own: dict[str, Sequence[int]] = {
            "pixels": _SIDES[self.arch],
            "batch": _BATCHES,
            "steps": (5, 10, 20, 40) if self.arch in _SMALL else (2, 4, 8),
            "chunks": _CHUNKS,
            "controls": _CONTROLS,
            "loras": _LORAS,
        }
        return sorted(self.values.get(axis, own[axis]))

    def setting(self, axis: str = "", value: int = 1) -> Setting:
        """Return what a point is asked for; without an axis, what all others have in common."""
        steps = self.steps
        if steps is None:
            steps = 10 if self.arch in _SMALL else 2
        common = Setting(
            self.arch, resolution=native_side(self.arch), steps=steps, threads=self.threads
        )
        fields = {"pixels": "resolution", "batch": "batch_size", "steps": "steps"}
        if axis not in fields:
            return common
        changed: dict[str, Any] = {fields[axis]: value}
        return replace(common, **changed)


def require_disk(growth: Growth, cache: Path) -> None:
    """Refuse an axis whose ControlNets the disk cannot hold, as files and in a bundle.

    Raises:
        OutOfMemoryError: it names the axis.
    """
    if "controls" not in growth.measured or growth.arch not in _CONTROLNET_GB:
        return
    folder = next(one for one in (cache, *cache.absolute().parents) if one.exists())
    needed = 2 * max(growth.values_of("controls")) * _CONTROLNET_GB[growth.arch]
    found = shutil.disk_usage(folder).free / 1e9
    if found < needed:
        raise OutOfMemoryError(
            f"axis controls of {growth.arch} needs about {needed:.0f} GB of disk in {cache}, found "
            f"{found:.1f} GB. Leave it out of --axes, or name another folder with --cache."
        )


def measure(
    growth: Growth,
    cache: Path,
    keep: Callable[[dict[str, Any]], None],
    progress: Progress = lambda _: None,
) -> None:
    """Measure all axes.

    Args:
        growth: what to measure.
        cache: folder of built bundles, ControlNets and LoRAs.
        keep: takes the figures of each axis as soon as it is done, and those of one that an error
            or a signal ends, with what was measured up to then.
        progress: told what is going on.

    Raises:
        BackendUnavailableError: the backend cannot run here.
        OutOfMemoryError: the machine has too little memory or disk for the architecture or an axis.
        DeviceError: every point of an axis failed.
    """
    require_backends(growth.backend)
    if growth.arch != "demo":
        check_memory(growth.arch)
    require_disk(growth, cache)
    points = {axis: _points(growth, axis, cache, progress) for axis in growth.measured}
    packed: set[str] = set()
    for axis, of_axis in points.items():
        run = _Axis(growth, axis, of_axis)
        # Packing a bundle's weights for the first time takes memory that no later start does.
        widest = of_axis[max(of_axis) if axis == "controls" else min(of_axis)]
        if widest.bundle not in packed:
            progress(f"{axis}: packing")
            with contextlib.suppress(DeviceError):  # which the point itself will have
                PointProcess(widest).close()
            packed.add(widest.bundle)
        try:
            run.measure(progress)
        finally:
            if run.has_figures:
                keep(run.figures())
        if not run.has_figures:
            raise DeviceError(f"axis {axis}: no point was measured; {run.failures()}")


def _points(growth: Growth, axis: str, cache: Path, progress: Progress) -> dict[int, Point]:
    values = growth.values_of(axis)
    # One bundle for all axes but that of controls, whatever is measured of it.
    sides = sorted({*growth.values_of("pixels"), native_side(growth.arch)})
    names = [f"control{number}" for number in range(1, max(values) + 1)]
    bundle = growth_bundle(
        growth.arch, growth.backend, cache, progress,
        sides=[native_side(growth.arch)] if axis == "controls" else sides,
        batch=1 if axis == "controls" else max(growth.values_of("batch")),
        controls=names if axis == "controls" else (),
    )  # fmt: skip
    loras: Sequence[str] = ()
    if axis == "loras":
        loras = growth_loras(growth.arch, bundle, cache, max(values), progress)
    return {
        value: Point(
            bundle,
            growth.backend,
            growth.precision,
            growth.setting(axis, value),
            chunks=value if axis == "chunks" else 0,
            controls=tuple(names[:value]) if axis == "controls" else (),
            loras=tuple(loras[:value]) if axis == "loras" else (),
        )
        for value in values
    }


class _Axis:
    """The points of one axis, and what was measured of them up to now."""

    def __init__(self, growth: Growth, axis: str, points: Mapping[int, Point]) -> None:
        self.growth = growth
        self.axis = axis
        self.points = points
        self.started: dict[int, dict[str, Any]] = {}
        self.failed: dict[int, str] = {}
        self.runs: dict[int, list[dict[str, float]]] = {value: [] for value in points}
        self.interleaved = True
        self.is_complete = False
        self.others_percent = 0.0

    @property
    def has_figures(self) -> bool:
        return any(self.runs.values())

    def failures(self) -> str:
        return "; ".join(f"{value}: {why}" for value, why in self.failed.items())

    def measure(self, progress: Progress) -> None:
        with ExitStack() as alive:
            processes = {}
            for value in self.points:
                if process := self._start(value, progress):
                    if self.interleaved:
                        processes[value] = alive.enter_context(process)
                    else:
                        process.close()
                if not _has_room(self.started):
                    # From here on one at a time, also those that fitted beside others.
                    self.interleaved = False
                    alive.close()
                    processes = {}
            if self.interleaved:
                self._time(processes, progress)
        if not self.interleaved:
            for value in self.started:
                with PointProcess(self.points[value]) as process:
                    self._time({value: process}, progress)
        self.is_complete = True

    def _start(self, value: int, progress: Progress) -> PointProcess | None:
        progress(f"{self.axis} {value}: load, first request and memory")
        try:
            process = PointProcess(self.points[value])
        except DeviceError as error:
            self.failed[value] = str(error)
            return None
        self.started[value] = process.started
        return process

    def _time(self, processes: Mapping[int, PointProcess], progress: Progress) -> None:
        load = OtherLoad()
        for number in range(self.growth.runs):
            for value, process in processes.items():
                progress(f"{self.axis} {value}: run {number + 1} of {self.growth.runs}")
                if self.growth.threads != 1:
                    time.sleep(_SETTLE_SECONDS)
                self.runs[value].append(process.serve())
        self.others_percent = max(self.others_percent, load.percent())

    def figures(self) -> dict[str, Any]:
        growth = self.growth
        done = {value: runs for value, runs in self.runs.items() if runs}
        return {
            "kind": KIND,
            "arch": growth.arch,
            "backend": growth.backend,
            "precision": next(iter(self.started.values()))["precision"],
            "axis": self.axis,
            "setting": asdict(growth.setting()),
            "interleaved": self.interleaved,
            "complete": self.is_complete,
            "points": [
                {
                    "value": self._size(value),
                    **_point(self.points[value], runs, self.started[value]),
                }
                for value, runs in done.items()
            ],
            "failed": {str(self._size(value)): why for value, why in self.failed.items()},
            "fits": self._fits(done),
            "noise": _noise(list(done.values()), self.others_percent),
        }

    def _size(self, value: int) -> int:
        return value * value if self.axis == "pixels" else value

    def _fits(self, done: Mapping[int, Sequence[Mapping[str, float]]]) -> dict[str, Any]:
        fits: dict[str, Any] = {}
        stages = dict.fromkeys(stage for runs in done.values() for stage in runs[0])
        for stage in (*stages, PEAK):
            sizes, values = [], []
            for value, runs in done.items():
                if stage == PEAK:
                    found = [float(self.started[value][PEAK])]
                else:
                    found = [run[stage] for run in runs if stage in run]
                if found:
                    sizes.append(float(self._size(value)))
                    values.append(found)
            power = power_fit(sizes, values, interleaved=self.interleaved)
            line = linear_fit(sizes, values, interleaved=self.interleaved)
            fit = {**(power or {})}
            if line and self.axis in LINEAR:
                fit["linear"] = line
            if fit:
                fits[stage] = fit
        return fits


def _point(
    point: Point, runs: Sequence[Mapping[str, float]], started: Mapping[str, Any]
) -> dict[str, Any]:
    stages = dict.fromkeys(stage for run in runs for stage in run)
    values = {stage: [run[stage] for run in runs if stage in run] for stage in stages}
    shares = [100 * run["outside"] / run["end_to_end"] for run in runs]
    return {
        "stages_ms": {
            stage: {**asdict(Spread.of(found)), "values": found} for stage, found in values.items()
        },
        PEAK: started[PEAK],
        "first_seconds": started["first_seconds"],
        "outside_ms_per_step": statistics.median(values["outside"]) / point.setting.steps,
        "outside_percent": statistics.median(shares),
    }


def _noise(
    points: Sequence[Sequence[Mapping[str, float]]], others_percent: float
) -> dict[str, Any]:
    """Say how much the machine was disturbed: by others, run by run, and from first to last."""
    spreads, drifts = [], []
    for runs in points:
        times = [run["end_to_end"] for run in runs]
        spread, half = Spread.of(times), len(times) // 2
        spreads.append(100 * (spread.p90 - spread.p10) / spread.median)
        if half:
            ends = statistics.median(times[:half]), statistics.median(times[-half:])
            drifts.append(100 * (ends[1] / ends[0] - 1))
    spread_percent = statistics.median(spreads)
    drift_percent = statistics.median(drifts) if drifts else 0.0
    why = []
    if others_percent > BUSY_PERCENT:
        why.append(f"other programs took {others_percent:.0f} % of the cores")
    if spread_percent > _MOST_SPREAD:
        why.append(f"runs of a point spread by {spread_percent:.0f} %")
    if abs(drift_percent) > _MOST_DRIFT:
        why.append(f"times drifted by {drift_percent:+.0f} %")
    return {
        "others_percent": round(others_percent, 1),
        "spread_percent": round(spread_percent, 1),
        "drift_percent": round(drift_percent, 1),
        "is_noisy": bool(why),
        "why": why,
    }


def _has_room(started: Mapping[int, Mapping[str, Any]]) -> bool:
    """Say whether another process, perhaps larger than all before, would still fit."""
    import psutil

    largest = max((one[PEAK] for one in started.values()), default=0)
    return bool(psutil.virtual_memory().available > _SPARE * largest)
