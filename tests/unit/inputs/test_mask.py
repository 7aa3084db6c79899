"""Masks: polarity, blur, cells, boxes, fills, and bytes that stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from sdengine.inputs.mask import (
    Box,
    blurred,
    composite,
    filled,
    latent_weights,
    mask_weights,
    masked_box,
    resized_weights,
)
from sdengine.inputs.picture import read_picture
from sdengine.request.request import FIELDS

Array = NDArray[Any]


def stroke(width: int = 64, height: int = 48, left: int = 20, right: int = 30) -> Array:
    pixels = np.zeros((height, width), np.uint8)
    pixels[10:20, left:right] = 255
    return pixels


def test_white_may_change_and_grey_is_between() -> None:
    found = mask_weights(read_picture("mask", np.array([[0, 51, 255]], np.uint8)), invert=False)
    np.testing.assert_allclose(found, [[0, 0.2, 1]], atol=1e-6)
    found = mask_weights(read_picture("mask", np.array([[0, 51, 255]], np.uint8)), invert=True)
    np.testing.assert_allclose(found, [[1, 0.8, 0]], atol=1e-6)


def test_alpha_that_varies_is_the_mask() -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[..., :3], pixels[0, :, 3] = 255, (0, 128, 129)
    np.testing.assert_array_equal(
        mask_weights(read_picture("mask", pixels), invert=False), [[0, 0, 1]]
    )
    pixels[..., 3] = 7
    np.testing.assert_array_equal(
        mask_weights(read_picture("mask", pixels), invert=False), [[1, 1, 1]]
    )


def test_blur_is_a_gaussian() -> None:
    weights = stroke().astype(np.float32) / np.float32(255)
    found = blurred(weights, 3.0)
    expected = np.asarray(Image.fromarray(stroke()).filter(ImageFilter.GaussianBlur(3.0)))
    assert np.abs(found - expected / 255).max() < 0.03
    assert blurred(weights, 0.0) is weights
    np.testing.assert_allclose(blurred(np.ones((5, 5), np.float32), 4.0), 1.0)


def test_a_stroke_of_one_pixel_is_not_lost() -> None:
    for column in range(64):
        cells = latent_weights(
            stroke(left=column, right=column + 1) / np.float32(255), 8, soft=False
        )
        assert cells[1:3, column // 8].all() and cells.sum() == 2
    faint = stroke() * np.float32(0.3 / 255)
    assert latent_weights(faint, 8, soft=True).max() == pytest.approx(0.3)


def test_the_box_has_the_proportions_and_stays_inside() -> None:
    weights = stroke(200, 100, 0, 4) / np.float32(255)
    box = masked_box(weights, 5, 64, 64)
    assert box == Box(0, 5, 20, 25)
    assert masked_box(weights, 1000, 64, 64) == Box(0, 0, 200, 100)
    assert masked_box(np.zeros((10, 10), np.float32), 5, 64, 64) is None
    wide = masked_box(weights, 5, 128, 64)
    assert wide is not None and (wide.width, wide.height) == (40, 20)


def test_fill_takes_the_colours_around() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 1] = 200
    pixels[20:40, 20:40] = (255, 0, 0)
    weights = np.zeros((64, 64), np.float32)
    weights[18:42, 18:42] = 1
    found = filled(pixels, weights).astype(int)
    assert np.abs(found[30, 30] - (0, 200, 0)).max() < 12
    np.testing.assert_array_equal(found[:10], pixels[:10])


def test_weight_0_keeps_the_bytes() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 8, 8, 3), np.uint8)
    weights = np.zeros((8, 8), np.float32)
    weights[:2], weights[2] = 1, 0.5
    found = composite(a, b, weights)
    np.testing.assert_array_equal(found[:2], a[:2])
    np.testing.assert_array_equal(found[3:], b[3:])
    np.testing.assert_array_equal(found[2], np.rint((a[2].astype(float) + b[2]) / 2))


def test_weights_are_resized_as_pictures_are() -> None:
    assert resized_weights(stroke() / np.float32(255), 32, 24, "stretch").shape == (24, 32)


def test_the_blur_reaches_as_far_as_its_help_says() -> None:
    field = FIELDS["mask_blur"]
    weights = np.zeros((1, 64), np.float32)
    weights[:, 32:] = 1
    reached = int((blurred(weights, field.default)[0, :32] > 0).sum())
    assert (
        f", {field.default:g} if not given, so that its edge reaches {reached} pixels" in field.help
    )
