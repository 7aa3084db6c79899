"""Edges as OpenCV finds them, blurs as SciPy makes them, strokes by their formulas."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from sdengine.inputs import edges
from sdengine.inputs.gaussian import gaussian

# What cv2.Canny of OpenCV 5.0.0 gives for `picture()`: the bits of its 24 rows, white as 1.
OPENCV = {
    (100, 200): (
        "0400000038000000080000000800004010e00073131e00462603006d0c19801918b4803410488066901080c2"
        "48109189700043048800467508008d9d8c0198410603306de3f6608b0008c58000018840001b442000067"
        "8e0000c008000080f00"
    ),
    (64, 64): (
        "86969620b84055eba8d450080800d940d0e00373531e3c462603056d8c39801958f48f3410489866911280c2"
        "4a92918972c24305883a467509088d9d8cf198450603306de3f6608b0008c780fa01885f88bb4430c2067"
        "ae058ec00b3c6882f0c"
    ),
    (20, 700): (
        "0000000000000000000000000000004000e00073031e00460603006d0c0180191800803410008066900080c2"
        "48008189700043058800467508008d9d0c0198450603306d03f6608b0008c7800001885f003b443000067"
        "ae0000c00b300080f0c"
    ),
    (99.5, 400.7): (
        "0000000000000000000000000000004000e00073031e00460603006d0c0180191800803410008066900080c2"
        "48008189700043048800467408008d9c0c0198400603306003f660800008c58000018840003b442000067"
        "8e0000c008000080f00"
    ),
}


def picture() -> NDArray[np.uint8]:
    """A disc and a texture, a ramp and a texture, and a slanting step, in three channels."""
    y, x = np.mgrid[:24, :32]
    disc = 180 * ((x - 10) ** 2 + (y - 11) ** 2 < 49)
    ramp = 5 * x + 3 * y
    texture = (x * 31 + y * 17) * (x + 3 * y) % 61
    step = np.where(x + y > 34, 200, 40)
    return np.stack([disc + texture, ramp + texture // 3, step], 2).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("thresholds", OPENCV, ids=str)
def test_canny_is_opencvs_to_the_pixel(thresholds: tuple[float, float]) -> None:
    bits = np.frombuffer(bytes.fromhex(OPENCV[thresholds]), np.uint8)
    expected = np.unpackbits(bits).reshape(24, 32) * 255
    np.testing.assert_array_equal(edges.canny(picture(), *thresholds), expected)


def test_the_edges_of_the_smallest_pictures() -> None:
    for shape in ((1, 1, 3), (1, 5, 3), (5, 1, 3)):
        assert not edges.canny(np.full(shape, 90, np.uint8), 0, 0).any()


def test_a_weak_edge_is_kept_where_it_leads_to_a_strong_one_however_far() -> None:
    """The contrast of a step falls along it; only the step's first rows are strong."""
    pixels = np.zeros((300, 8, 3), np.uint8)
    pixels[:, 4:] = np.linspace(60, 28, 300).astype(np.uint8)[:, None, None]
    assert (edges.canny(pixels, 100, 230) == 255).any(axis=1).sum() == 300
    assert not edges.canny(pixels, 100, 250).any()  # 4 x 60 is 240: no row is strong


@pytest.mark.parametrize(("border", "mode"), [("edge", "nearest"), ("reflect", "mirror")])
@pytest.mark.parametrize("shape", [(24, 32, 3), (7, 5), (1, 9)])
def test_gaussian(border: Any, mode: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(3).uniform(0, 255, shape)
    sigmas = (2.3, 2.3, 0)[: len(shape)]
    expected = ndimage.gaussian_filter(values, sigmas, radius=(7, 7, 0)[: len(shape)], mode=mode)
    np.testing.assert_allclose(gaussian(values, 2.3, 7, border), expected, rtol=1e-12)


def test_a_soft_edge_is_white_where_the_picture_changes_most_and_black_where_it_does_not() -> None:
    pixels = np.full((20, 40, 3), 30, np.uint8)
    pixels[:, 10:] = 60
    pixels[:, 30:] = 200
    found = edges.soft_edge(pixels, 2)
    assert found.dtype == np.uint8 and found.max() == 255
    assert set(np.flatnonzero(found[7] == 255)) == {29, 30}
    assert found[7, 10] == pytest.approx(255 * 30 / 140, abs=1) and found[7, 20] < 3
    assert not edges.soft_edge(np.full((9, 9, 3), 77, np.uint8), 2).any()


def test_levels_count_in_the_darkest_channel() -> None:
    pixels = np.array([[[255, 255, 127], [255, 255, 128], [126, 255, 255]]], np.uint8)
    np.testing.assert_array_equal(edges.threshold(pixels, 127), [[0, 255, 0]])
    np.testing.assert_array_equal(edges.scribble(pixels, 127), [[0, 0, 255]])


def test_xdog_finds_dark_lines_and_no_light_ones() -> None:
    """Against the formula: 2 x (255 - uint8(255 - (coarse - fine))) above the level."""
    noise = np.random.default_rng(2).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    fine, coarse = (
        ndimage.gaussian_filter(noise.astype(float), (s, s, 0), radius=(r, r, 0), mode="mirror")
        for s, r in ((0.5, 2), (5.0, 20))
    )
    dark = (255 - (coarse - fine).min(axis=2)).clip(0, 255).astype(np.uint8)
    found = edges.xdog(noise, 32)
    np.testing.assert_array_equal(found, np.where(2 * (255 - dark.astype(int)) > 32, 255, 0))
    assert 0 < (found == 255).mean() < 0.5
    line = np.full((21, 21, 3), 200, np.uint8)
    line[10] = 20
    assert set(np.flatnonzero(edges.xdog(line, 32)[:, 4])) == {10}
    assert not edges.xdog(255 - line, 32)[10].any()


def test_a_line_through_all_of_a_picture_takes_few_rounds() -> None:
    candidate = np.zeros((200, 200), bool)
    candidate[::2] = True
    candidate[1::4, -1] = candidate[3::4, 0] = True  # rows joined at their ends, in turn
    strong = np.zeros_like(candidate)
    strong[0, 0] = True
    calls = []
    sys.setprofile(lambda _, event, function: calls.append(event))
    try:
        found = edges._connected(candidate, strong)
    finally:
        sys.setprofile(None)
    np.testing.assert_array_equal(found > 0, candidate)
    assert len(calls) < 2000  # of Python and of C, where the line is 20,000 pixels long
