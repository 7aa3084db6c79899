"""Stage clock: where a request's time goes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from sdengine.backends.base import Array, Module
from sdengine.images.timings import StageTime, Timings


class StageClock:
    """Add up the time of a request's stages; time that the caller holds it does not count.

    Args:
        bands: networks that the request had computed in bands, as `Provenance` has them.
    """

    def __init__(self) -> None:
        self.bands: dict[tuple[str, int, int], int] = {}
        self._ns: Counter[str] = Counter()
        self._calls: Counter[str] = Counter()
        self._active_ns = 0
        self._resumed_ns = time.perf_counter_ns()

    def stage(self, name: str, calls: int = 1) -> _Stage:
        """Count the time inside a block, and the calls that it makes, for a stage."""
        return _Stage(self, name, calls)

    def add(self, name: str, ns: int, calls: int) -> None:
        """Count what a stage has taken."""
        self._ns[name] += ns
        self._calls[name] += calls

    def timed(self, stage: str, module: Module) -> Module:
        """Return the module with its runs counted for a stage."""
        return _TimedModule(self, stage, module)

    def pause(self) -> None:
        """Stop counting until `resume`."""
        self._active_ns += time.perf_counter_ns() - self._resumed_ns

    def resume(self) -> None:
        """Count again."""
        self._resumed_ns = time.perf_counter_ns()

    def timings(self) -> Timings:
        """Return the figures up to now."""
        total_ns = self._active_ns + time.perf_counter_ns() - self._resumed_ns
        stages = {name: StageTime(ns / 1e6, self._calls[name]) for name, ns in self._ns.items()}
        return Timings(stages, total_ns / 1e6)


class _Stage:
    """The block of a stage; a class, because a generator takes longer to enter and leave."""

    def __init__(self, clock: StageClock, name: str, calls: int) -> None:
        self._clock = clock
        self._name = name
        self._calls = calls

    def __enter__(self) -> None:
        self._started_ns = time.perf_counter_ns()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._name, time.perf_counter_ns() - self._started_ns, self._calls)


class _TimedModule:
    def __init__(self, clock: StageClock, stage: str, module: Module) -> None:
        self._clock = clock
        self._stage = stage
        self._module = module
        self.inputs = module.inputs
        self.outputs = module.outputs

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        with self._clock.stage(self._stage):
            return self._module.run(inputs)

    def close(self) -> None:
        self._module.close()
