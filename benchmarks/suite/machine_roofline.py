"""Roofline of this machine's processors: what its arithmetic and its memory reach at most."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from types import MappingProxyType
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.native.instruction_set import chosen_isa
from sdengine.errors import ConfigError
from sdengine.machine import free_memory_bytes

# What records call it, and what `_native.peak_rate` does.
VALUES = MappingProxyType({"fp32": "float32", "bf16": "bfloat16", "int16": "int16", "int8": "int8"})
MAX_THREADS = 4096
_LEAST_BYTES = 512 << 20  # of all arrays together, many times what caches hold
_THREAD_BYTES = 64 << 20  # and of a thread's, so that large machines' caches do not hold it
_PASSES = 6  # the best counts: other programs only slow a copy down


class Roofline(TypedDict):
    """What the processors reach.

    Args:
        flops_per_second: multiplications and additions of all threads, by a key of VALUES.
        bytes_per_second: read and written together, half of them each.
        threads: that computed and copied.
    """

    flops_per_second: dict[str, float]
    bytes_per_second: float
    threads: int


def measure(threads: int) -> Roofline:
    """Measure the peaks of arithmetic and of memory, which takes a second or two.

    Arithmetic is that of the instructions which the native backend uses here, in a loop that waits
    for nothing; memory is copied by all threads between arrays far larger than caches.

    Args:
        threads: from 1 to 4096.

    Raises:
        ConfigError: threads are not such a number.
    """
    if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
        raise ConfigError.for_field("threads", threads, f"an integer from 1 to {MAX_THREADS}")
    isa = chosen_isa()
    peaks = {name: _native.peak_rate(kind, threads, isa) for name, kind in VALUES.items()}
    return {
        "flops_per_second": peaks,
        "bytes_per_second": _copied_per_second(threads),
        "threads": threads,
    }


def _copied_per_second(threads: int) -> float:
    """Return the bytes a second, read and written, of the fastest pass."""
    most = max(free_memory_bytes() // 4, threads << 16)  # a machine may have very little
    values = min(max(_LEAST_BYTES, threads * _THREAD_BYTES), most) // 2 // threads // 8
    seconds: list[float] = []
    barrier = threading.Barrier(threads, action=lambda: seconds.append(time.perf_counter()))

    def work(source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
        # Pages lie near the thread that touches them first.
        source.fill(1.0)
        target.fill(2.0)
        for _ in range(_PASSES):
            barrier.wait()
            np.copyto(target, source)
        barrier.wait()

    pairs = [(np.empty(values), np.empty(values)) for _ in range(threads)]
    workers = [threading.Thread(target=work, args=pair, daemon=True) for pair in pairs]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    fastest = min(after - before for before, after in pairwise(seconds))
    return 2 * 8 * values * threads / fastest
