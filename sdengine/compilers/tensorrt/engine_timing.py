"""Engine timing: whole engines on the GPU, in the process that holds the builder.

Runs are queued behind each other without a wait, so that what launching costs the host is hidden
where a network is not so small that nothing else matters. One engine is there at a time, since
three may not fit; each comes twice, so that a clock that changes shows in all.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdengine import _native
from sdengine.compilers.tensorrt.builder import BuilderFailure, BuilderLog, Tell, make_logger
from sdengine.storage.tensor_file import to_bf16_bits

PHASE = "timing engines"
_WARM_UP_RUNS = 3
_ROUNDS = 2
_SECONDS_A_ROUND = 0.5
_MOST_RUNS = 200
_SET = "timing"
_NUMPY: Mapping[str, Any] = {
    "float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64
}  # fmt: skip


def time_engines(trt: Any, job: dict[str, Any], log: BuilderLog, tell: Tell) -> dict[str, Any]:
    """Time engines of one network at every image size.

    Args:
        trt: the module tensorrt.
        job: `engines`, a path by name; `sizes`, by image size the number of its `profile`, its
            `tensors` (shape and type by name) and the names of its `inputs`.
        log: where TensorRT's messages go.
        tell: told of each measurement; False ends the job.

    Returns:
        `results`: by engine, `ms` by image size or a `problem`.

    Raises:
        BuilderFailure: it was ended.
    """
    runtime = trt.Runtime(make_logger(trt, log))
    total = _ROUNDS * len(job["engines"])
    best: dict[str, dict[str, float]] = {}
    problems: dict[str, str] = {}
    for index in range(total):
        name, path = list(job["engines"].items())[index % len(job["engines"])]
        if name not in problems:
            try:
                found = _times(runtime, Path(path), job["sizes"])
            except Exception as error:  # of the driver's too: the other engines remain
                problems[name] = str(error) or type(error).__name__
            else:
                before = best.get(name, found)
                best[name] = {size: min(ms, before[size]) for size, ms in found.items()}
        if not tell(PHASE, index, total):
            raise BuilderFailure("cancelled")
    results: dict[str, Any] = {name: {"ms": ms} for name, ms in best.items()}
    results |= {name: {"problem": problem} for name, problem in problems.items()}
    return {"results": results, "notes": []}


def _times(runtime: Any, path: Path, sizes: Mapping[str, Any]) -> dict[str, float]:
    """Return an engine's milliseconds by image size."""
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BuilderFailure("the engine cannot be loaded")
    return {size: _time(engine, **described) for size, described in sizes.items()}


def _time(engine: Any, profile: int, tensors: Mapping[str, Any], inputs: list[str]) -> float:
    regions = [
        (name, math.prod(shape) * np.dtype(_NUMPY[dtype]).itemsize, 0, 0)
        for name, (shape, dtype) in tensors.items()
    ]
    pool = _native.MemoryPool({_SET: regions}, device=_native.cuda_device())
    queue = _native.Queue(pool)
    context = engine.create_execution_context()
    if context is None or not context.set_optimization_profile_async(profile, queue.stream):
        raise BuilderFailure(f"the engine refuses its profile {profile}")
    for seed, name in enumerate(inputs):
        shape, dtype = tensors[name]
        if not context.set_input_shape(name, tuple(shape)):
            raise BuilderFailure(f"the engine refuses {name} {shape}")
        queue.upload(_SET, name, _values(shape, dtype, seed))
    for name in tensors:
        if not context.set_tensor_address(name, pool.address(_SET, name)):
            raise BuilderFailure(f"the engine has no tensor {name}")

    def run(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            if not context.execute_async_v3(queue.stream):
                raise BuilderFailure("the engine did not run")
        queue.synchronize()
        return (time.perf_counter() - start) / times

    run(_WARM_UP_RUNS)
    once = max(run(1), 1e-9)
    return 1000 * run(max(1, min(_MOST_RUNS, int(_SECONDS_A_ROUND / once))))


def _values(shape: list[int], dtype: str, seed: int) -> np.ndarray[Any, Any]:
    """Return normal numbers; ones where they are whole."""
    if dtype == "int64":
        return np.ones(shape, np.int64)
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return to_bf16_bits(values) if dtype == "bfloat16" else values.astype(_NUMPY[dtype])
