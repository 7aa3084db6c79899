"""Measure one side alone in a fresh process: load time, first image, peak memory.

    python -m sdengine.benchmarks.memory BUNDLE BACKEND PRECISION THREADS SIDE STEPS GUIDANCE

Prints one JSON object. Run by the harness, so that neither side's memory holds the other's.
"""

from __future__ import annotations

import json
import resource
import sys
import time

import sdengine


def measure(
    bundle: str,
    backend: str,
    precision: str,
    threads: str,
    side: str,
    steps: str,
    guidance_scale: str,
) -> dict[str, float]:
    """Return seconds and bytes of loading a bundle and making one image."""
    started = time.perf_counter()
    count = int(threads) or None
    with sdengine.load(bundle, backend, precision, count) as engine:
        result = engine.generate(
            "a benchmark",
            width=int(side),
            height=int(side),
            steps=int(steps),
            guidance_scale=float(guidance_scale),
            seed=0,
        )
        total = time.perf_counter() - started
    # Linux counts ru_maxrss in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "load_seconds": round(result.timings.load_ms / 1e3, 3),
        "first_image_seconds": round(total, 3),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit,
    }


if __name__ == "__main__":
    print(json.dumps(measure(*sys.argv[1:])))
