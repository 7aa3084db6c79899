"""One side alone in a fresh process: load time, first request, peak memory.

    python -m sdengine.benchmarks.alone '{"bundle": "demo", "backend": "native", ...}'

Prints one JSON object. The harness starts it, so that neither side's memory holds the other's.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import sdengine
from sdengine.benchmarks.gpu import DeviceMemory
from sdengine.benchmarks.measures import peak_bytes


def measure(
    bundle: str, backend: str, precision: str, threads: int | None, request: dict[str, Any]
) -> dict[str, float]:
    """Return seconds and bytes of loading a bundle and serving one request.

    Args:
        bundle, backend, precision, threads: as `sdengine.load` takes them.
        request: the fields of a `Request`.

    Returns:
        `load_seconds` (reading, compiling), `first_seconds` (load and first request together),
        `peak_bytes` of the whole process. Of backends on a GPU also `device_bytes`, and of torch's
        `allocated_device_bytes`; see `DeviceMemory`.
    """
    device = DeviceMemory.of(backend)
    started = time.perf_counter()
    with sdengine.load(bundle, backend, precision, threads) as engine:
        opened = time.perf_counter()
        result = engine.run(sdengine.Request(**request))
        done = time.perf_counter()
        on_device = device.figures() if device else {}
    return {
        "load_seconds": round(opened - started + result.timings.load_ms / 1e3, 3),
        "first_seconds": round(done - started, 3),
        "peak_bytes": peak_bytes(),
        **on_device,
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
