"""Depth maps: read at their own precision, resized before they are normalised, never NaN."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.inputs.depth import DepthMap, depth_channel, depth_warnings, read_depth


def read(value: Any) -> DepthMap:
    found = read_depth("depth", value)
    assert isinstance(found, DepthMap)
    return found


def content(array: NDArray[Any], kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


RAMP = np.add.outer(np.arange(30.0), np.arange(50.0)) / 79


@pytest.mark.parametrize("inverted", [False, True])
def test_the_channel_is_what_torch_resizes_and_then_normalises(inverted: bool) -> None:
    values = RAMP**2 * 300
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(values)[None, None], size=(8, 12), mode="bicubic", align_corners=False
    )
    wanted = 2 * (theirs - theirs.min()) / (theirs.max() - theirs.min()) - 1
    found = depth_channel(read(values), 8, 12, invert=inverted)
    assert found.shape == (1, 1, 8, 12) and (found.min(), found.max()) == (-1, 1)
    np.testing.assert_allclose(found, wanted.numpy() * (-1 if inverted else 1), atol=1e-5)


def test_sixteen_bits_and_floats_keep_their_steps() -> None:
    fine = (RAMP * 60000).astype(np.uint16)
    wanted = depth_channel(read(RAMP), 30, 50, invert=False)
    for value in (fine, content(fine, "PNG"), content(fine, "TIFF"), Image.fromarray(fine)):
        found = depth_channel(read(value), 30, 50, invert=False)
        np.testing.assert_allclose(found, wanted, atol=1e-4)
    floats = content(RAMP.astype(np.float32), "TIFF")
    np.testing.assert_allclose(depth_channel(read(floats), 30, 50, invert=False), wanted, atol=1e-6)


def test_colours_count_by_their_grey_value() -> None:
    grey = (RAMP * 255).astype(np.uint8)
    colours = np.repeat(grey[..., None], 3, axis=2)
    found = read(content(colours, "PNG")).values
    np.testing.assert_array_equal(found, read(grey).values)


def test_rows_are_rows_and_columns_columns() -> None:
    values = np.zeros((10, 40))
    values[:, 30:] = 1
    found = depth_channel(read(values), 5, 20, invert=False)[0, 0]
    assert (found[:, :13] < -0.8).all() and (found[:, 17:] > 0.8).all()


def test_a_map_that_is_the_same_everywhere_is_zero() -> None:
    for level in (0.0, 7.0, 1e30):
        flat = read(np.full((5, 6), level))
        assert "the same everywhere" in "".join(depth_warnings("depth", flat))
        np.testing.assert_array_equal(depth_channel(flat, 8, 8, invert=False), 0)
    assert depth_warnings("depth", read(RAMP)) == ()


def test_a_photograph_is_told_from_a_map() -> None:
    grey = np.repeat((RAMP * 255).astype(np.uint8)[..., None], 3, axis=2)
    assert depth_warnings("depth", read(content(grey, "PNG"))) == ()
    assert depth_warnings("depth", read(content(grey, "JPEG"))) == ()
    photo = grey * np.array([1, 0, 1], np.uint8)
    (line,) = depth_warnings("depth", read(content(photo, "PNG")))
    assert line.startswith("depth: the picture has colours")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, np.inf]]), "NaN"),
        (np.zeros((2, 2, 3)), "array"),
        (np.zeros((2, 2), complex), "array"),
        (b"nothing", "no picture"),
        (content(np.zeros((4, 4), np.uint8), "PNG")[:40], "no picture|damaged"),
        (content(np.array([[0, np.nan]], np.float32), "TIFF"), "NaN"),
        (3.5, "a depth map"),
    ],
)
def test_what_is_no_map_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^depth: .*({message})") as caught:
        read_depth("depth", value)
    assert str(caught.value).count("depth: ") == 1
