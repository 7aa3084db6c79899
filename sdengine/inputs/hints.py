"""Hints of control networks made without weights: [H,W,3] uint8 from [H,W,3] uint8, but one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine.inputs.gaussian import gaussian
from sdengine.inputs.mask import Weights
from sdengine.inputs.resize import Pixels


def inverted(pixels: Pixels) -> Pixels:
    """Exchange black and white."""
    return np.asarray(255 - pixels)


def blurred_picture(pixels: Pixels, sigma: float) -> Pixels:
    """Blur by a Gaussian of a deviation in pixels, cut off at three of them."""
    return np.rint(gaussian(pixels, sigma, int(3 * sigma + 0.5), "reflect")).astype(np.uint8)


def tile(pixels: Pixels, factor: float) -> Pixels:
    """Shrink each side by a factor, averaging, and enlarge again: what a tile network sharpens."""
    from PIL import Image

    height, width = pixels.shape[:2]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    image = Image.fromarray(pixels).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def inpaint(pixels: Pixels, weights: Weights) -> NDArray[np.float32]:
    """Return a picture in [0,1] with -1 where a mask lets it change, as inpaint networks read it.

    Args:
        pixels: [H,W,3].
        weights: [H,W] of the mask; above 0.5 may change.

    Returns:
        [H,W,3] fp32.
    """
    masked = (weights > 0.5)[..., None]
    return np.asarray(np.where(masked, -1, pixels / np.float32(255)), np.float32)


def depth(
    values: NDArray[np.float32], low: float | None, high: float | None, *, invert: bool
) -> Pixels:
    """Bring a depth map to 0 to 255, near as 255; one that is the same everywhere becomes black.

    Args:
        values: [H,W].
        low, high: what becomes 0 and 255; None for the smallest and the largest value. A sequence
            of pictures flickers unless they are the same for all.
        invert: smaller is nearer.
    """
    first = float(values.min()) if low is None else low
    last = float(values.max()) if high is None else high
    if last - first <= 1e-6 * max(abs(first), abs(last)):
        return np.zeros((*values.shape, 3), np.uint8)
    share = ((values.astype(np.float64) - first) / (last - first)).clip(0, 1)
    return in_colours(np.rint((1 - share if invert else share) * 255).astype(np.uint8))


def in_colours(grey: NDArray[np.uint8]) -> Pixels:
    """Return [H,W] as three equal channels."""
    return np.repeat(grey[..., None], 3, axis=2)
