"""Kernel timing: engines of one node on the GPU, in the process that holds the builder.

Each candidate is compared with the others of its case in turns, so that a clock that changes
changes it for all of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sdengine import _native
from sdengine.compilers.tensorrt.builder import (
    BuilderFailure,
    BuilderLog,
    Tell,
    build_engine,
    make_logger,
    open_timing_cache,
)

_WARM_UP_RUNS = 10
_ROUNDS = 5
_RUNS_A_ROUND = 20
_ELEMENT_BYTES = 2  # plugins compute in 16 bits
PHASE = "timing kernels"

# Builds a graph: path -> engine, serialised.
Build = Callable[[str], Any]
# Times engines that read and write tensors of the same shapes: by engine, milliseconds of a run.
Timer = Callable[[Sequence[Any], dict[str, list[int]]], list[float]]


def time_job(trt: Any, job: dict[str, Any], log: BuilderLog, tell: Tell) -> dict[str, Any]:
    """Build and time the candidates of a job; see `time_cases`.

    Args:
        trt: the module tensorrt.
        job: `cases`, and what every build shares; see `tensorrt_builder.build_file`.
        log: where the builder's messages go.
        tell: told of each case; False ends the job.
    """
    logger = make_logger(trt, log)
    cache = open_timing_cache(trt, job["timing_cache"])

    def build(path: str) -> Any:
        log.problems.clear()
        single = {**job, "onnx": path, "profiles": [], "user_allocation": False}
        try:
            return build_engine(trt, single, logger, lambda *_: True, cache)
        except BuilderFailure as failure:
            raise BuilderFailure("; ".join([str(failure), *list(log.problems)[-1:]])) from None

    results = time_cases(job["cases"], build, EngineTimer(trt, logger), tell)
    if cache is not None:
        cache.save()
    return {"results": results, "notes": [] if cache is None else cache.notes}


def time_cases(
    cases: Sequence[dict[str, Any]], build: Build, timer: Timer, tell: Tell
) -> list[dict[str, Any]]:
    """Return, by case and candidate, milliseconds or what is wrong.

    Args:
        cases: each has `tensors`, the shape of each by name, and `graphs`, a path by candidate.
        build: makes an engine of a graph.
        timer: times engines.
        tell: told of each case; False ends the job.

    Raises:
        BuilderFailure: it was ended.
    """
    results = []
    for index, case in enumerate(cases):
        if not tell(PHASE, index, len(cases)):
            raise BuilderFailure("cancelled")
        result: dict[str, Any] = {}
        engines = {}
        for name, path in case["graphs"].items():
            try:
                engines[name] = build(path)
            except Exception as error:  # of a plugin's Python too: the other candidate remains
                result[name] = {"ms": None, "problem": str(error) or type(error).__name__}
        if engines:
            result |= _timed(engines, case["tensors"], timer)
        results.append(result)
    return results


def _timed(
    engines: dict[str, Any], tensors: dict[str, list[int]], timer: Timer
) -> dict[str, dict[str, Any]]:
    try:
        times = timer(list(engines.values()), tensors)
        return {name: {"ms": ms} for name, ms in zip(engines, times, strict=True)}
    except Exception as error:
        problem = str(error) or type(error).__name__
        return {name: {"ms": None, "problem": problem} for name in engines}


class EngineTimer:
    """Run engines in turns and return the median time that TensorRT's profiler tells of each.

    The profiler takes times on the GPU, so that what launching costs the host, which a captured
    graph saves, does not count.

    Args:
        trt: the module tensorrt.
        logger: of TensorRT's.
    """

    def __init__(self, trt: Any, logger: Any) -> None:
        self._trt: Any = trt
        self._runtime = trt.Runtime(logger)

    def __call__(self, engines: Sequence[Any], tensors: dict[str, list[int]]) -> list[float]:
        """Time engines whose tensors have these shapes."""
        buffers = {name: _filled(shape, seed) for seed, (name, shape) in enumerate(tensors.items())}
        runs = [self._prepared(engine, buffers) for engine in engines]
        for run in runs:
            for _ in range(_WARM_UP_RUNS):
                run()
        times: list[list[float]] = [[] for _ in runs]
        for _ in range(_ROUNDS):
            for run, found in zip(runs, times, strict=True):
                found += [run() for _ in range(_RUNS_A_ROUND)]
        medians = [statistics.median(found) for found in times]
        if min(medians) <= 0:
            raise BuilderFailure("the profiler told no times")
        return medians

    def _prepared(
        self, serialised: Any, buffers: dict[str, _native.CudaBuffer]
    ) -> Callable[[], float]:
        engine = self._runtime.deserialize_cuda_engine(serialised)
        if engine is None:
            raise BuilderFailure("the engine cannot be loaded")
        context = engine.create_execution_context()
        for name, buffer in buffers.items():
            if not context.set_tensor_address(name, buffer.address):
                raise BuilderFailure(f"the engine has no tensor {name}")
        profiler = _make_profiler(self._trt)
        context.profiler = profiler

        def run() -> float:
            profiler.total_ms = 0.0
            # It holds the engine, which the context needs.
            if engine is None or not context.execute_async_v3(0):
                raise BuilderFailure("the engine did not run")
            _native.cuda_synchronize()
            return float(profiler.total_ms)

        return run


def _filled(shape: list[int], seed: int) -> _native.CudaBuffer:
    """Return 16-bit numbers on the GPU: normal ones of fp16, which are small ones of bf16."""
    values = np.random.default_rng(seed).standard_normal(math.prod(shape)).astype(np.float16)
    buffer = _native.CudaBuffer(_ELEMENT_BYTES * values.size)
    buffer.upload(values)
    return buffer


def _make_profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Add up the times of an engine's layers."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.total_ms = 0.0

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.total_ms += ms

    return Profiler()
