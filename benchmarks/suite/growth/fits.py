"""Fits: how a cost grows with what is asked for, as a power of it and as a fixed part and more."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.benchmarks.measures import LEAST_FOR_INTERVAL, resampled_medians

_CONFIDENCE = 0.95
Array = NDArray[np.float64]


def power_fit(
    sizes: Sequence[float], values: Sequence[Sequence[float]], *, interleaved: bool
) -> dict[str, Any] | None:
    """Fit cost = factor * size ** exponent by least squares of logarithms.

    Args:
        sizes: of the points; one of 0 has no logarithm and is left out.
        values: of each point's runs; their median counts.
        interleaved: the points took turns, so that values of equal index drifted together.

    Returns:
        `exponent` with `low` and `high` of 95 %, None where points have too few values, and
        `misfit_percent`, how far the power is from a point's median at most; None where fewer than
        two points can be fitted.
    """
    kept = [(x, v) for x, v in zip(sizes, values, strict=True) if x > 0]
    if len(kept) < 2 or any(min(v) <= 0 for _, v in kept):
        return None
    logs = np.log([x for x, _ in kept])
    runs = [v for _, v in kept]
    medians = np.log([np.median(v) for v in runs])
    slope, level = _line(logs, medians[None])
    fitted = level[0] + slope[0] * logs
    low, high = None, None
    drawn = _drawn(runs, interleaved)
    if drawn is not None:
        slopes, _ = _line(logs, np.log(drawn))
        low, high = _ends(slopes)
    misfit = 100 * float(np.max(np.abs(np.expm1(medians - fitted))))
    return {"exponent": float(slope[0]), "low": low, "high": high, "misfit_percent": misfit}


def linear_fit(
    sizes: Sequence[float], values: Sequence[Sequence[float]], *, interleaved: bool
) -> dict[str, Any] | None:
    """Fit cost = fixed + per_unit * size by least squares of medians; arguments as `power_fit`.

    Returns:
        `fixed`, `per_unit` with its `low` and `high`, in the values' unit, and `per_unit_percent`,
        what one more costs of what the smallest size does; None with fewer than two points.
    """
    if len(sizes) < 2:
        return None
    places = np.asarray(sizes, dtype=np.float64)
    slope, level = _line(places, np.array([[np.median(v) for v in values]]))
    low, high = None, None
    drawn = _drawn(values, interleaved)
    if drawn is not None:
        low, high = _ends(_line(places, drawn)[0])
    smallest = level[0] + slope[0] * places.min()
    percent = 100 * float(slope[0] / smallest) if smallest > 0 else None
    return {
        "fixed": float(level[0]),
        "per_unit": float(slope[0]),
        "low": low,
        "high": high,
        "per_unit_percent": percent,
    }


def _line(places: Array, values: Array) -> tuple[Array, Array]:
    """Return slope and level [N] of the lines through values [N,points]."""
    apart = places - places.mean()
    slopes = values @ apart / (apart @ apart)
    return slopes, values.mean(axis=1) - slopes * places.mean()


def _drawn(values: Sequence[Sequence[float]], interleaved: bool) -> Array | None:
    """Return bootstrapped medians [N,points]; None where a point has too few values."""
    counts = {len(one) for one in values}
    if min(counts) < LEAST_FOR_INTERVAL:
        return None
    # Rounds are drawn as a whole: one seed draws the same of each point.
    is_joint = interleaved and len(counts) == 1
    columns = [
        resampled_medians(np.asarray(one), np.random.default_rng(0 if is_joint else index))
        for index, one in enumerate(values)
    ]
    return np.stack(columns, axis=1)


def _ends(values: Array) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)
