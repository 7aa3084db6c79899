"""Edges and strokes of a picture as control networks read them: white on black.

All functions take [H,W,3] uint8 pixels and return [H,W] uint8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.inputs.gaussian import gaussian
from sdengine.inputs.resize import Pixels

# tan(22.5 degrees), with 15 bits behind the point.
_TAN_BITS = 15
_TAN = 13573
_XDOG_SIGMAS = (0.5, 5.0)
_FLAT = 1e-3  # grey levels a pixel, above what rounding leaves of a picture without any edge

Map = NDArray[np.uint8]


def canny(pixels: Pixels, low: float, high: float) -> Map:
    """Find edges one pixel wide.

    Of each pixel the colour channel with the largest gradient counts. The result is OpenCV's
    `Canny(pixels, low, high)`, to the pixel.

    Args:
        pixels: [H,W,3].
        low, high: thresholds of the gradient |dx| + |dy| of 3x3 Sobel filters, 0 to 2040; edges
            above the first are kept where they touch, by way of others, one above the second.

    Source: "A Computational Approach to Edge Detection" (Canny 1986); OpenCV's documentation.
    """
    wide = np.pad(pixels.astype(np.int32), ((1, 1), (1, 1), (0, 0)), "edge")
    across = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    along = wide[:, :-2] + 2 * wide[:, 1:-1] + wide[:, 2:]
    dx, dy = across[:, 2:] - across[:, :-2], along[2:] - along[:-2]
    size = np.abs(dx) + np.abs(dy)
    channel = size.argmax(axis=2)[..., None]
    dx, dy, size = (np.take_along_axis(a, channel, 2)[..., 0] for a in (dx, dy, size))
    candidate = (size > np.floor(low)) & _is_ridge(dx, dy, size)
    return _connected(candidate, candidate & (size > np.floor(high)))


def _is_ridge(dx: NDArray[Any], dy: NDArray[Any], size: NDArray[Any]) -> NDArray[np.bool_]:
    """Say where a gradient is the largest along its own direction, of eight."""
    height, width = size.shape
    wide = np.pad(size, 1)

    def at(down: int, right: int) -> NDArray[Any]:
        return wide[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    x, y = np.abs(dx) * _TAN, np.abs(dy) << _TAN_BITS
    is_level, is_steep = y < x, y > x + (np.abs(dx) << (_TAN_BITS + 1))
    opposite = (dx ^ dy) < 0
    return np.select(
        [is_level, is_steep, opposite],
        [
            (size > at(0, -1)) & (size >= at(0, 1)),
            (size > at(-1, 0)) & (size >= at(1, 0)),
            (size > at(-1, 1)) & (size > at(1, -1)),
        ],
        (size > at(-1, -1)) & (size > at(1, 1)),
    )


def _connected(candidate: NDArray[np.bool_], strong: NDArray[np.bool_]) -> Map:
    """Keep the candidates that touch a strong one, by way of others, on a side or a corner.

    Each gets the lowest number of those that it touches, over and over; what a number points to
    is followed to its end each time. So a line that winds through all of a picture takes no more
    rounds than a logarithm of its length.
    """
    height, width = candidate.shape
    places = np.flatnonzero(candidate)
    numbers = np.full((height + 2, width + 2), -1)
    numbers[1:-1, 1:-1][candidate] = np.arange(len(places))
    own = numbers[1:-1, 1:-1]
    pairs = []
    for down, right in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other = numbers[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        both = (own >= 0) & (other >= 0)
        pairs.append((own[both], other[both]))
    first, second = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    root = np.arange(len(places))
    while first.size:
        low, high = np.minimum(first, second), np.maximum(first, second)
        np.minimum.at(root, high, low)
        while (root != (further := root[root])).any():
            root = further
        first, second = root[first], root[second]
        apart = first != second
        first, second = first[apart], second[apart]
    is_kept = np.zeros(len(places), bool)
    is_kept[root[strong.ravel()[places]]] = True
    found = np.zeros(height * width, np.uint8)
    found[places[is_kept[root]]] = 255
    return found.reshape(height, width)


def soft_edge(pixels: Pixels, sigma: float) -> Map:
    """Return the size of the gradient of the blurred picture, the largest as 255.

    A plain filter that stands in for networks such as HED: soft outlines, but texture too.

    Args:
        pixels: [H,W,3]; of the channels the one with the largest gradient counts.
        sigma: of the blur, in pixels.
    """
    smooth = gaussian(pixels, sigma, int(3 * sigma + 0.5), "edge")
    wide = np.pad(smooth, ((1, 1), (1, 1), (0, 0)), "edge")
    size = np.hypot(wide[1:-1, 2:] - wide[1:-1, :-2], wide[2:, 1:-1] - wide[:-2, 1:-1]).max(axis=2)
    largest = size.max()
    return np.asarray(np.rint(size * (255 / largest if largest > _FLAT else 0)), np.uint8)


def threshold(pixels: Pixels, level: float) -> Map:
    """Make white what is lighter than a level in every channel."""
    return np.where(pixels.min(axis=2) > level, 255, 0).astype(np.uint8)


def scribble(pixels: Pixels, level: float) -> Map:
    """Make white what is darker than a level in some channel: strokes on paper."""
    return np.where(pixels.min(axis=2) < level, 255, 0).astype(np.uint8)


def xdog(pixels: Pixels, level: float) -> Map:
    """Make white what is darker than its surroundings in every channel: lines of a drawing.

    Twice the difference of two blurs (deviations 0.5 and 5 pixels) is compared with the level.

    Source: "XDoG: an eXtended difference-of-Gaussians compendium" (Winnemoeller et al. 2012); the
    numbers are those of the web UI's ControlNet extension.
    """
    fine, coarse = (gaussian(pixels, s, int(4 * s + 0.5), "reflect") for s in _XDOG_SIGMAS)
    darker = (coarse - fine).min(axis=2).clip(0, 255)
    # As there, what is left of 255 is cut to whole numbers, so this is rounded up.
    return np.where(2 * np.ceil(darker) > level, 255, 0).astype(np.uint8)
