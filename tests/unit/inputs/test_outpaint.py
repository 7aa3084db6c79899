"""Canvases of outpainting: where the picture lies, what fills the rest, ramps and tones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sdengine.inputs.outpaint import FILLS, Sides, canvas, matched, ramp

Pixels = NDArray[np.uint8]
SIDES = Sides(5, 40, 30, 3)


def picture(height: int = 24, width: int = 32) -> Pixels:
    """Stripes on a slope, so that nothing in it is plain."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / 3), np.cos(y / 4), np.sin((x + y) / 5)]
    return np.stack([(60 * wave + 90 + 2 * x).astype(np.uint8) for wave in waves], axis=2)


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize(
    "sides", [SIDES, Sides(left=7), Sides(top=7), Sides(right=100), Sides(bottom=1)]
)
def test_the_pictures_bytes_stay_where_it_lies(fill: str, sides: Sides) -> None:
    own = picture()
    found = canvas(own, sides, fill)
    assert found.shape == (sides.top + 24 + sides.bottom, sides.left + 32 + sides.right, 3)
    inside = found[sides.top : sides.top + 24, sides.left : sides.left + 32]
    np.testing.assert_array_equal(inside, own)


@pytest.mark.parametrize("fill", FILLS)
def test_what_is_filled_has_the_pictures_colours(fill: str) -> None:
    own = picture()
    found = canvas(own, Sides(60, 60, 60, 60), fill).astype(float)
    new = np.ones(found.shape[:2], bool)
    new[60:84, 60:92] = False
    for part in (found[:60], found[-60:], found[:, :60], found[:, -60:]):
        assert part.std(axis=(0, 1)).max() > 1  # no plain border
        if fill != "edge":  # which has the colours of the outermost rows
            assert np.abs(part.mean(axis=(0, 1)) - own.mean(axis=(0, 1))).max() < 40
    assert found[new].min() >= own.min() - 1 and found[new].max() <= own.max() + 1


def test_edge_and_mirror() -> None:
    own = picture()
    edge = canvas(own, Sides(left=4), "edge")
    np.testing.assert_array_equal(edge[:, :4], np.repeat(own[:, :1], 4, axis=1))
    mirror = canvas(own, Sides(left=4, bottom=60), "mirror")
    np.testing.assert_array_equal(mirror[:24, :4], own[:, 3::-1])
    np.testing.assert_array_equal(mirror[24:48, 4:], own[::-1])
    np.testing.assert_array_equal(mirror[48:72, 4:], own)  # and again, however far


def test_a_blur_reaches_however_far() -> None:
    own = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    found = canvas(own, Sides(right=3000), "blur")
    assert np.abs(found[:, -100:].astype(int) - own[0, 0]).max() <= 2


def test_noise_has_the_histogram_and_the_spectrum() -> None:
    own = picture(64, 64)
    sides = Sides(64, 64, 64, 64)
    found = canvas(own, sides, "noise")
    np.testing.assert_array_equal(found, canvas(own, sides, "noise"))
    around = np.sort(np.delete(found, range(64, 128), axis=0), axis=None)
    wanted = np.sort(own, axis=None)
    both = [np.quantile(one, np.linspace(0.05, 0.95, 19)) for one in (around, wanted)]
    assert np.abs(both[0] - both[1]).max() < 25

    def smoothness(pixels: NDArray[Any]) -> float:
        values = pixels.astype(float)
        return float(np.diff(values, axis=1).std() / values.std())

    white = np.random.default_rng(0).integers(0, 256, (64, 64, 3))
    assert smoothness(found[:64]) < 1.5 * smoothness(own) < 0.8 * smoothness(white)
    np.testing.assert_array_equal(canvas(np.full((9, 9, 3), 7, np.uint8), sides, "noise"), 7)


def test_ramps_fall_into_the_picture_on_sides_that_grow() -> None:
    found = ramp((32, 24), Sides(left=5, bottom=3), 8)
    assert found.shape == (27, 37)
    assert (found[:, :5] == 1).all() and (found[24:] == 1).all()
    np.testing.assert_allclose(found[0, 5:13], 1 - (np.arange(8) + 0.5) / 8)
    np.testing.assert_allclose(found[23:15:-1, 36], 1 - (np.arange(8) + 0.5) / 8)
    assert (found[:16, 13:] == 0).all()
    assert found[23, 5] > found[23, 36] and found[23, 5] > found[0, 5]  # a corner
    hard = ramp((32, 24), Sides(left=5), 0)
    assert (hard[:, :5] == 1).all() and (hard[:, 5:] == 0).all()


def test_a_tone_is_matched_and_content_is_not() -> None:
    own = picture()
    strip = np.zeros((24, 32), bool)
    strip[:, :8] = True
    darker = (own * 0.9 - 4).astype(np.uint8)
    found = matched(darker, own, strip).astype(int)
    assert np.abs(found - own).max() <= 3 < np.abs(darker.astype(int) - own).min()
    half = (own * 0.9 - 4).astype(np.uint8)
    half[:12] = 255 * (own[:12] < 128)  # something else than the picture shows
    assert np.abs(matched(half, own, strip)[12:].astype(int) - own[12:]).max() <= 4
    flat, near = np.full_like(own, 100), np.full_like(own, 140)
    np.testing.assert_array_equal(matched(flat, near, strip), 116)  # no further
    black = np.zeros_like(own)
    assert matched(black, own + 50, strip) is black
    assert matched(black, own, np.zeros((24, 32), bool)) is black
