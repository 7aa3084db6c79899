"""Resizing: the sizes and places of each mode, and what is laid under transparent pixels."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from sdengine.inputs.resize import flattened, nearest, padded, resized

Pixels = NDArray[np.uint8]


def ramp(width: int, height: int) -> Pixels:
    """Red grows with x, green with y."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, 0 * x], axis=2).astype(np.uint8)


@pytest.mark.parametrize("mode", ["stretch", "crop", "fill"])
@pytest.mark.parametrize("size", [(64, 64), (63, 40), (40, 63), (96, 32), (7, 90)])
@pytest.mark.parametrize("source", [(64, 64), (50, 70), (120, 30), (9, 9)])
def test_every_mode_gives_the_size(
    mode: str, size: tuple[int, int], source: tuple[int, int]
) -> None:
    assert resized(ramp(*source), *size, mode).shape == (size[1], size[0], 3)


def test_crop_keeps_the_middle() -> None:
    found = resized(ramp(128, 64), 64, 64, "crop")
    np.testing.assert_array_equal(found, ramp(128, 64)[:, 32:96])


def test_fill_repeats_the_outermost_columns() -> None:
    found = resized(ramp(32, 64), 64, 64, "fill")
    np.testing.assert_array_equal(found[:, 16:48], ramp(32, 64))
    assert (found[:, :16] == ramp(32, 64)[:, :1]).all()
    assert (found[:, 48:] == ramp(32, 64)[:, -1:]).all()


def test_stretch_changes_the_proportions() -> None:
    found = resized(ramp(128, 64), 64, 64, "stretch").astype(int)
    assert found[32, 0, 0] < 10 and found[32, 63, 0] > 245


def test_padding_repeats_the_last_row_and_column() -> None:
    found = padded(ramp(10, 6), 16, 8)
    np.testing.assert_array_equal(found[:6, :10], ramp(10, 6))
    assert (found[7, :10] == ramp(10, 6)[-1]).all() and (found[:6, 15] == ramp(10, 6)[:, -1]).all()


def test_transparent_pixels_show_the_background() -> None:
    pixels = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [0, 0, 0, 128]]], np.uint8)
    found = flattened(pixels, (255, 255, 255))
    np.testing.assert_array_equal(found, [[[255] * 3, [10, 20, 30], [127] * 3]])


@pytest.mark.parametrize("size", [(60, 84), (9, 13), (40, 30)], ids=str)
@pytest.mark.parametrize("axes", ["x", "y", "xy"])
def test_edges_that_meet_are_those_of_pictures_laid_side_by_side(
    size: tuple[int, int], axes: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)
    (width, height), x, y = size, 3 if "x" in axes else 1, 3 if "y" in axes else 1
    wide = resized(np.tile(pixels, (y, x, 1)), x * width, y * height, "stretch")
    top, left = (height if y == 3 else 0), (width if x == 3 else 0)
    wanted = wide[top : top + height, left : left + width].astype(int)
    found = resized(pixels, width, height, "stretch", wraps=axes)
    assert found.shape == (height, width, 3)
    assert np.abs(found - wanted).max() <= 1
    # An axis that is filled or cut has its own edges.
    for mode, filled in (("fill", (120, 45)), ("crop", (120, 45))):
        other = resized(pixels, *filled, mode, wraps="x" if mode == "fill" else "y")
        np.testing.assert_array_equal(other, resized(pixels, *filled, mode))
    plain = resized(pixels, width, height, "stretch", nearest)
    np.testing.assert_array_equal(resized(pixels, width, height, "stretch", nearest, axes), plain)
