"""Measures: spreads, errors of outputs, peak memory, from raw figures."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What equal pictures get, because JSON has no infinity.
EQUAL_PSNR_DB = 100.0
# Fewer values say nothing of how far they scatter.
LEAST_FOR_INTERVAL = 3
# More than this of the cores taken by others is too much for small differences to mean anything.
BUSY_PERCENT = 5.0
_RESAMPLES = 4000
_SMALLEST = 1e-9  # what is divided by


@dataclass(frozen=True)
class Spread:
    """Summarise repeated measurements of one figure."""

    median: float
    p10: float
    p90: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        low, high = np.percentile(values, [10, 90])
        return cls(statistics.median(values), float(low), float(high), len(values))


class OtherLoad:
    """Watch how much of the machine others than this program and its children take."""

    def __init__(self) -> None:
        self._start = _busy_and_own_seconds()
        self._started = time.perf_counter()

    def percent(self) -> float:
        """Return the share of all cores that others took since the start, 0 to 100.

        What a hypervisor gave to other machines counts too.
        """
        busy, own = (b - a for a, b in zip(self._start, _busy_and_own_seconds(), strict=True))
        available = (time.perf_counter() - self._started) * (os.cpu_count() or 1)
        return min(100.0, max(0.0, 100 * (busy - own) / max(available, 1e-9)))


def _busy_and_own_seconds() -> tuple[float, float]:
    """Return the processors' seconds of everybody, and of this program and its children."""
    import psutil

    times = psutil.cpu_times()._asdict()
    # Guests' time is part of user's already.
    idle = ("idle", "iowait", "guest", "guest_nice")
    own = sum(os.times()[:4])  # with that of children that ended
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            own += sum(child.cpu_times()[:4])
    return float(sum(v for k, v in times.items() if k not in idle)), own


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """Return the median ratio of pairs measured one right after the other.

    A drift of the machine's speed hits both halves of a pair, and so not the ratio.
    """
    pairs = zip(numerators, denominators, strict=True)
    return statistics.median(above / max(below, _SMALLEST) for above, below in pairs)


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    *,
    paired: bool,
    confidence: float = 0.95,
) -> tuple[float, float | None, float | None]:
    """Return a ratio with the ends of its interval, by a bootstrap that is the same each time.

    With 3 or 4 values the interval is about that from the smallest to the largest ratio, which
    holds the true one less often than `confidence` says.

    Args:
        numerators, denominators: at least one each; pairs have equal counts.
        paired: values of equal index were measured one right after the other: the ratio is the
            median of theirs, and pairs are drawn. Else it is that of the medians, and the values
            of both are drawn apart.
        confidence: share of intervals that hold the true ratio, in (0,1).

    Returns:
        Ratio, low and high; low and high are None where either side has fewer than
        LEAST_FOR_INTERVAL values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 13.3: the percentile interval.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.maximum(np.asarray(denominators, dtype=np.float64), _SMALLEST)
    if paired:
        ratio = median_ratio(numerators, denominators)
    else:
        ratio = float(np.median(above) / np.median(below))
    if min(len(above), len(below)) < LEAST_FOR_INTERVAL:
        return ratio, None, None
    drawn = np.random.default_rng(0)
    if paired:
        ratios = resampled_medians(above / below, drawn)
    else:
        ratios = resampled_medians(above, drawn) / resampled_medians(below, drawn)
    low, high = np.quantile(ratios, [(1 - confidence) / 2, (1 + confidence) / 2])
    return ratio, float(low), float(high)


def resampled_medians(
    values: NDArray[np.float64], drawn: np.random.Generator
) -> NDArray[np.float64]:
    """Return the medians of many samples of the values' own count, drawn with replacement."""
    chosen = drawn.integers(len(values), size=(_RESAMPLES, len(values)))
    medians: NDArray[np.float64] = np.median(values[chosen], axis=1)
    return medians


def relative_rms(actual: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return the root mean square error relative to that of the expected values."""
    exact = expected.astype(np.float64)
    squared = np.mean((actual.astype(np.float64) - exact) ** 2)
    return float(np.sqrt(squared / np.mean(exact**2)))


def psnr(actual: NDArray[np.uint8], expected: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio of 8-bit images in dB; at most EQUAL_PSNR_DB."""
    squared = np.mean((actual.astype(np.float64) - expected) ** 2)
    if squared == 0:
        return EQUAL_PSNR_DB
    return min(EQUAL_PSNR_DB, float(10 * np.log10(255**2 / squared)))


def peak_bytes() -> int:
    """Return the largest resident memory of this program up to now."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not ru_maxrss: on Linux it outlives exec, so a child starts at its parent's peak.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
