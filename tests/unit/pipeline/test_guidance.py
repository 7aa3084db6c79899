"""Guidance against its equations, written out for one image at a time in float64."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine.pipeline.guidance import guide
from sdengine.pipeline.row_plan import RowPlan

RNG = np.random.default_rng(0)


def plan(weights: list[list[float]], has_negative: bool = True) -> RowPlan:
    array = np.array(weights, dtype=np.float32)
    blocks = array.shape[0] + has_negative
    return RowPlan(tuple(range(blocks * array.shape[1])), array, has_negative)


def noise_pred(rows: int) -> np.ndarray:
    return RNG.standard_normal((rows, 4, 6, 5)).astype(np.float32)


@pytest.mark.parametrize("scale", [0.0, 1.5, 7.5])
def test_one_part(scale: float) -> None:
    m = noise_pred(6)
    found = guide(m, plan([[1, 1, 1]]), scale, 0.0)
    for image in range(3):
        uncond, cond = m[image].astype(float), m[3 + image].astype(float)
        expected = (1 - scale) * uncond + scale * cond
        np.testing.assert_allclose(found[image], expected, rtol=1e-5, atol=1e-5)


def test_parts_are_weighted_directions() -> None:
    m = noise_pred(6)
    found = guide(m, plan([[1.0, 0.7], [0.5, 0.0]]), 5.0, 0.0)
    for image, weights in enumerate([(1.0, 0.5), (0.7, 0.0)]):
        uncond = m[image].astype(float)
        expected = uncond.copy()
        for part, weight in enumerate(weights):
            expected += 5.0 * weight * (m[2 * (part + 1) + image] - uncond)
        np.testing.assert_allclose(found[image], expected, rtol=1e-5, atol=1e-5)


def test_rescale_brings_back_the_conditional_deviation() -> None:
    m = noise_pred(4)
    whole = guide(m, plan([[1, 1]]), 9.0, 1.0)
    none = guide(m, plan([[1, 1]]), 9.0, 0.0)
    half = guide(m, plan([[1, 1]]), 9.0, 0.5)
    for image in range(2):
        assert whole[image].std(ddof=1) == pytest.approx(m[2 + image].std(ddof=1), rel=1e-5)
        expected = (whole[image] + none[image]) / 2
        np.testing.assert_allclose(half[image], expected, rtol=1e-5, atol=1e-6)


def test_without_negative() -> None:
    m = noise_pred(2)
    found = guide(m, plan([[1, 1]], has_negative=False), 3.0, 0.0)
    np.testing.assert_array_equal(found, m)


def test_plain() -> None:
    assert plan([[1, 1]]).is_plain
    assert not plan([[1, 0.5]]).is_plain
    assert not plan([[1, 1], [1, 1]]).is_plain
