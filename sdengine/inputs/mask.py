"""Mask of an inpainting request: what of a picture may change, in pixels and in latent cells.

White may change, as in the web UI. Values are 0 to 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine.inputs.gaussian import gaussian
from sdengine.inputs.picture import Picture, Pixels
from sdengine.inputs.recorded import Recorded
from sdengine.inputs.resize import resized

Weights = NDArray[np.float32]
_BLURS = ((256.0, 1), (64.0, 1), (16.0, 2), (4.0, 4), (2.0, 2), (0.0, 1))


@dataclass(frozen=True)
class Box:
    """A part of a picture, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top


def mask_weights(picture: Recorded, *, invert: bool) -> Weights:
    """Return a mask picture as weights [H,W].

    Where its alpha is not the same everywhere the mask is the opaque part, else the grey value.
    """
    assert isinstance(picture, Picture)
    pixels = picture.pixels
    if pixels.shape[2] == 4 and pixels[..., 3].min() != pixels[..., 3].max():
        weights = (pixels[..., 3] > 128).astype(np.float32)
    else:
        grey = pixels[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
        weights = np.rint(grey) / np.float32(255)
    return np.asarray(1 - weights if invert else weights, np.float32)


def resized_weights(
    weights: Weights, width: int, height: int, mode: str, wraps: str = "none"
) -> Weights:
    """Resize weights [h,w] as a picture is; what "fill" adds to a picture may change."""
    if weights.shape == (height, width):
        return weights
    levels = np.rint(weights * 255).astype(np.uint8)
    found = resized(np.repeat(levels[..., None], 3, axis=2), width, height, mode, wraps=wraps)
    return np.asarray(found[..., 0] / np.float32(255), np.float32)


def blurred(weights: Weights, sigma: float) -> Weights:
    """Blur weights [H,W] by a Gaussian, cut off at 2.5 sigma; what lies outside repeats the edge.

    Source: the kernel is the web UI's.
    """
    if sigma == 0:
        return weights
    found = gaussian(weights, sigma, int(2.5 * sigma + 0.5), "edge")
    return np.asarray(found.clip(0, 1), np.float32)


def latent_weights(weights: Weights, cell: int, *, soft: bool) -> Weights:
    """Return weights [H/cell,W/cell] of latent cells; H and W are multiples of the cell.

    Args:
        weights: [H,W].
        cell: pixels along a side of a latent cell.
        soft: the largest weight in a cell; else 1 where anything in it may change, so that strokes
            thinner than a cell are not lost.
    """
    rows, columns = weights.shape[0] // cell, weights.shape[1] // cell
    largest = weights.reshape(rows, cell, columns, cell).max(axis=(1, 3))
    return np.asarray(largest if soft else largest > 0.5 / 255, np.float32)


def masked_box(weights: Weights, padding: int, width: int, height: int) -> Box | None:
    """Return the part of a picture around what may change, of the proportions of a size.

    Args:
        weights: [H,W].
        padding: pixels on every side of it.
        width, height: whose proportions the box gets where the picture has room for them.

    Source: the way in which it grows is the web UI's.
    """
    rows, columns = np.flatnonzero(weights.any(axis=1)), np.flatnonzero(weights.any(axis=0))
    if not len(rows):
        return None
    limits = weights.shape[1], weights.shape[0]
    spans = []
    for found, limit in ((columns, limits[0]), (rows, limits[1])):
        spans.append((max(0, int(found[0]) - padding), min(limit, int(found[-1]) + 1 + padding)))
    sides = [last - first for first, last in spans]
    wanted = width / height
    if sides[0] / sides[1] < wanted:
        spans[0] = _grown(spans[0], math.ceil(sides[1] * wanted), limits[0])
    else:
        spans[1] = _grown(spans[1], math.ceil(sides[0] / wanted), limits[1])
    return Box(spans[0][0], spans[1][0], spans[0][1], spans[1][1])


def _grown(span: tuple[int, int], size: int, limit: int) -> tuple[int, int]:
    size = min(size, limit)
    first = span[0] - (size - (span[1] - span[0])) // 2
    first = min(max(first, 0), limit - size)
    return first, first + size


def filled(pixels: Pixels, weights: Weights) -> Pixels:
    """Fill what may change with the colours around it: the rest blurred, from coarse to fine.

    What is too far away for all blurs gets the mean colour of the rest.

    Source: radii and their repetitions are those of the web UI's "fill".
    """
    from PIL import Image, ImageFilter

    kept = Image.fromarray(((1 - weights) * 255).astype(np.uint8))
    rest = Image.new("RGBa", kept.size)
    rest.paste(Image.fromarray(pixels).convert("RGBA").convert("RGBa"), mask=kept)
    found = Image.new("RGBA", kept.size)
    for radius, times in _BLURS:
        layer = rest.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            found.alpha_composite(layer)
    colors = np.array(found)
    is_blank = colors[..., 3] == 0
    if is_blank.any():
        share = 1 - weights if (weights < 1).any() else np.ones_like(weights)
        mean = np.tensordot(share, pixels, axes=((0, 1), (0, 1))) / share.sum(dtype=np.float64)
        colors[is_blank, :3] = np.rint(mean)
    return np.ascontiguousarray(colors[..., :3])


def composite(generated: Pixels, original: Pixels, weights: Weights) -> Pixels:
    """Lay [H,W,3] generated pixels over the original by weights; at weight 0 its bytes stay."""
    share = weights[..., None]
    mixed = np.rint(generated * share + original * (1 - share)).clip(0, 255).astype(np.uint8)
    return np.where(share > 0, mixed, original)
