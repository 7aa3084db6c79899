"""The roofline of the machine: which figures there are; nothing is compared with a time."""

from __future__ import annotations

from typing import Any

import pytest

from sdengine import _native
from sdengine.benchmarks.suite import machine_roofline
from sdengine.errors import ConfigError


@pytest.mark.parametrize("threads", [1, 2])
def test_peaks_of_arithmetic_and_memory(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def peak_rate(kind: str, count: int, isa: str) -> float:
        asked.append((kind, count))
        return 1e9 * len(asked)

    monkeypatch.setattr(_native, "peak_rate", peak_rate)
    monkeypatch.setattr(machine_roofline, "_LEAST_BYTES", 1 << 20)
    monkeypatch.setattr(machine_roofline, "_THREAD_BYTES", 1 << 20)
    found = machine_roofline.measure(threads)
    assert asked == [(kind, threads) for kind in ("float32", "bfloat16", "int16", "int8")]
    peaks = {"fp32": 1e9, "bf16": 2e9, "int16": 3e9, "int8": 4e9}
    assert found["flops_per_second"] == peaks
    assert found["threads"] == threads
    assert 1e6 < found["bytes_per_second"] < 1e15


def test_bytes_a_second_are_those_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes on by a second each pass, a second's bytes are those of one pass."""
    seconds = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(machine_roofline, "_LEAST_BYTES", 3 << 20)
    monkeypatch.setattr(machine_roofline, "_THREAD_BYTES", 1 << 10)
    assert machine_roofline._copied_per_second(3) == 3 << 20
    # A machine with very little memory copies less.
    monkeypatch.setattr(machine_roofline, "free_memory_bytes", lambda: 4 << 20)
    assert machine_roofline._copied_per_second(2) == 1 << 20


@pytest.mark.parametrize("threads", [0, -1, 4097, 1.0, True, None])
def test_threads_that_are_no_number_of_threads(threads: Any) -> None:
    with pytest.raises(ConfigError, match="threads"):
        machine_roofline.measure(threads)
