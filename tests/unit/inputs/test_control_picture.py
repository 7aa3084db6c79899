"""Control pictures at other sizes: maps keep their colours, lines stay lines."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from sdengine.inputs import resize
from sdengine.inputs.control_picture import resized_control
from sdengine.inputs.edges import canny
from sdengine.inputs.hints import in_colours
from sdengine.inputs.thinning import are_thin, thinned

RNG = np.random.default_rng(0)


def test_a_picture_of_that_size_is_left_alone() -> None:
    picture = RNG.integers(0, 256, (8, 12, 3), np.uint8)
    assert resized_control(picture, 12, 8, "crop") is picture


@pytest.mark.parametrize("size", [(90, 50), (31, 17)])
def test_maps_get_no_new_colours(size: tuple[int, int]) -> None:
    colours = RNG.integers(0, 256, (40, 3), np.uint8)
    picture = colours[RNG.integers(0, 40, (40, 60))]
    for mode in ("stretch", "crop", "fill"):
        found = resized_control(picture, *size, mode)
        assert found.shape == (size[1], size[0], 3)
        known = {tuple(colour) for colour in colours.tolist()}
        assert {tuple(colour) for colour in found.reshape(-1, 3).tolist()} <= known


@pytest.mark.parametrize("size", [(320, 320), (96, 96), (64, 80)])
def test_thin_lines_stay_and_stay_of_their_colours(size: tuple[int, int]) -> None:
    picture = np.zeros((160, 160, 3), np.uint8)
    picture[20:140, 50] = picture[100, 10:150] = (255, 128, 0)
    found = resized_control(picture, *size, "stretch")
    shown = {tuple(colour) for colour in found.reshape(-1, 3).tolist()}
    assert shown == {(0, 0, 0), (255, 128, 0)}
    lit = found[..., 0] > 0
    column, row = 50 * size[0] // 160, 100 * size[1] // 160
    assert lit[size[1] // 4 : size[1] // 2, column - 1 : column + 3].any(axis=1).all()
    assert lit[row - 1 : row + 3, size[0] // 4 : size[0] // 2].any(axis=0).all()
    assert lit.mean() < 0.08


@pytest.mark.parametrize("side", [50, 96, 320, 500])
def test_edges_are_one_pixel_wide_after_resizing(side: int) -> None:
    y, x = np.mgrid[0:160, 0:160]
    ring = np.abs(np.hypot(x - 80, y - 70) - 40) < 12
    shapes = np.where((ring | (y > 130))[..., None], np.uint8(230), np.uint8(20)).repeat(3, axis=2)
    lines = in_colours(canny(shapes, 100, 200))
    found = resized_control(lines, side, side, "stretch")[..., 0] > 0
    square = found[1:, 1:] & found[1:, :-1] & found[:-1, 1:] & found[:-1, :-1]
    assert square.sum() <= 0.02 * found.sum()
    if side > 160:  # as long as they were made, and all of a piece
        assert found.sum() < 1.3 * side / 160 * (lines[..., 0] > 0).sum()
        pieces = [ndimage.label(one, np.ones((3, 3)))[1] for one in (lines[..., 0] > 0, found)]
        assert pieces[0] == pieces[1] > 2


def test_strokes_and_areas_of_two_colours_are_not_thinned() -> None:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[10:50, 20:26] = picture[40:60, 30:60] = 255
    found = resized_control(picture, 128, 128, "stretch")[..., 0] > 0
    assert abs(int(found.sum()) - 4 * int((picture[..., 0] > 0).sum())) < 0.1 * found.sum()


def test_thinning_keeps_lines_whole() -> None:
    bar = np.zeros((40, 60), bool)
    bar[10:17, 5:55] = bar[10:35, 30:37] = True  # a T
    found = thinned(bar)
    assert not are_thin(bar) and are_thin(found)
    assert (found <= bar).all() and ndimage.label(found, np.ones((3, 3)))[1] == 1
    across, down = np.nonzero(found.any(axis=0))[0], np.nonzero(found.any(axis=1))[0]
    assert across[0] <= 9 and across[-1] >= 50 and down[-1] >= 30
    assert found.sum() < 90
    assert np.array_equal(thinned(found), found)  # nothing more can be taken away
    assert not thinned(np.zeros((3, 4), bool)).any()


def test_one_colour_stays() -> None:
    picture = np.full((10, 10, 3), 77, np.uint8)
    assert (resized_control(picture, 33, 7, "fill") == 77).all()


def test_pictures_shrink_by_averages_and_grow_smoothly() -> None:
    picture = RNG.integers(0, 256, (64, 64, 3), np.uint8)
    small = resized_control(picture, 32, 32, "stretch")
    blocks = picture.reshape(32, 2, 32, 2, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(small - blocks).max() <= 1  # rounded after each of the two axes
    large = resized_control(picture, 128, 128, "stretch")
    assert len(np.unique(large.reshape(-1, 3), axis=0)) > 64 * 64


@pytest.mark.parametrize("colours", [2, 9])
def test_a_long_strip_is_cut_before_it_is_enlarged(
    monkeypatch: pytest.MonkeyPatch, colours: int
) -> None:
    # Enlarged as a whole it would take 100 GB.
    strip = RNG.integers(0, colours, (1 << 17, 1, 3), np.uint8)
    assert resized_control(strip, 512, 512, "crop").shape == (512, 512, 3)
    for size in ((40, 9), (9, 40), (31, 31)):
        picture = RNG.integers(100, 100 + colours, (23, 17, 3), np.uint8)
        found = []
        for most in (1 << 27, 0):
            monkeypatch.setattr(resize, "_MOST_TO_CUT", most)
            found.append(resized_control(picture, *size, "crop").astype(int))
        # Pillow may take the axes in another order, and rounds after each.
        assert np.abs(found[0] - found[1]).max() <= (0 if colours == 2 else 1)
