"""Number formats of eight bits: rounded to the nearest number, saturated, scaled by fp16."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from sdengine.compilers.tensorrt.quantisation.formats import FORMATS, FP8, INT8, NumberFormat


def test_fp8_is_the_e4m3_of_ml_dtypes() -> None:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal(10_000) * 10.0 ** rng.integers(-4, 4, 10_000)).astype(np.float32)
    near = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    assert np.array_equal(FP8.stored(values, np.float32(1)), near.view(np.uint8))
    assert np.array_equal(FP8.rounded(values, np.float32(1)), near.astype(np.float32))


def test_int8_rounds_half_to_even_and_leaves_out_its_lowest_number() -> None:
    values = np.array([-200.0, -127.6, -2.5, -0.5, 0.5, 1.5, 126.6, 200.0], np.float32)
    bits = INT8.stored(values, np.float32(1)).view(np.int8)
    assert bits.tolist() == [-127, -127, -2, 0, 0, 2, 127, 127]
    assert np.array_equal(INT8.rounded(values * 0.25, np.float32(0.25)), bits * np.float32(0.25))


@pytest.mark.parametrize("number_format", FORMATS.values(), ids=str)
def test_what_is_left_of_a_weight_is_near_it(number_format: NumberFormat) -> None:
    rng = np.random.default_rng(1)
    loudness = 10.0 ** np.arange(-6, 2)[:, None, None]
    weight = (rng.standard_normal((8, 16, 9)) * loudness).astype(np.float32)
    weight[3] = 0.0
    scale = number_format.weight_scale(weight)
    assert scale.shape == (8,) and np.all(scale > 0)
    assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))
    error = np.sqrt(np.mean((number_format.rounded_weight(weight) - weight) ** 2, axis=(1, 2)))
    size = np.sqrt(np.mean(weight**2, axis=(1, 2)))
    # Each output channel has a scale of its own; the smallest, whose scale is at fp16's end, errs
    # more.
    assert np.all(error[2:] <= 0.03 * size[2:])
    assert not number_format.rounded_weight(weight)[3].any()


def test_a_float_has_room_above_what_the_calibration_met() -> None:
    largest = 3.0
    beyond = np.array([5.5], np.float32)
    assert abs(FP8.rounded(beyond, FP8.scale(largest)) - beyond) < 0.3
    assert INT8.rounded(beyond, INT8.scale(largest)) == pytest.approx(largest, rel=1e-3)
