"""Intervals of ratios: those of scipy's bootstrap, and how often they hold the true ratio."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from sdengine.benchmarks.measures import ratio_interval


def noisy(center: float, count: int, seed: int, percent: float = 5.0) -> NDArray[np.float64]:
    return center * np.exp(np.random.default_rng(seed).normal(0, percent / 100, count))


def ratio_of_medians(above: Any, below: Any, axis: int) -> Any:
    return np.median(above, axis=axis) / np.median(below, axis=axis)


def median_of_ratios(above: Any, below: Any, axis: int) -> Any:
    return np.median(above / below, axis=axis)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_intervals_are_those_of_scipy(paired: bool, confidence: float) -> None:
    above, below = noisy(300.0, 15, seed=1), noisy(100.0, 15, seed=2)
    found = ratio_interval(above.tolist(), below.tolist(), paired=paired, confidence=confidence)
    statistic = median_of_ratios if paired else ratio_of_medians
    wanted = stats.bootstrap(
        (above, below), statistic, paired=paired, vectorized=True, n_resamples=9999,
        confidence_level=confidence, method="percentile", rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert found[0] == pytest.approx(statistic(above, below, axis=-1))
    assert found[1:] == pytest.approx(tuple(wanted), rel=0.01)


def test_sides_of_different_counts_are_drawn_apart() -> None:
    ratio, low, high = ratio_interval([2.0, 2.1, 1.9, 2.0], [1.0, 1.0, 1.1], paired=False)
    assert low is not None and high is not None
    assert low <= ratio == 2.0 <= high
    with pytest.raises(ValueError, match="zip"):
        ratio_interval([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0], paired=True)


@pytest.mark.parametrize("paired", [True, False])
def test_few_values_have_no_interval(paired: bool) -> None:
    assert ratio_interval([4.0, 4.0], [2.0, 2.0], paired=paired) == (2.0, None, None)
    assert ratio_interval([4.0] * 3, [2.0] * 3, paired=paired) == (2.0, 2.0, 2.0)


def test_intervals_are_the_same_each_time() -> None:
    above, below = noisy(2.0, 7, seed=5).tolist(), noisy(1.0, 7, seed=6).tolist()
    again = [ratio_interval(above, below, paired=True) for _ in range(2)]
    assert again[0] == again[1]


def test_a_drift_that_hits_pairs_leaves_the_interval_narrow() -> None:
    drift = np.linspace(1, 3, 9)
    above, below = (drift * noisy(c, 9, seed=c, percent=1) for c in (2, 1))
    _, low, high = ratio_interval(above.tolist(), below.tolist(), paired=True)
    _, wide_low, wide_high = ratio_interval(above.tolist(), below.tolist(), paired=False)
    assert low is not None and high is not None
    assert wide_low is not None and wide_high is not None
    assert 1.9 < low < high < 2.1
    assert high - low < 0.2 * (wide_high - wide_low)


@pytest.mark.parametrize("paired", [True, False])
def test_most_intervals_hold_the_true_ratio(paired: bool) -> None:
    held = 0
    for seed in range(60):
        above, below = noisy(3.0, 9, 2 * seed), noisy(1.0, 9, 2 * seed + 1)
        _, low, high = ratio_interval(above.tolist(), below.tolist(), paired=paired)
        assert low is not None and high is not None
        held += low <= 3.0 <= high
    assert held >= 50
