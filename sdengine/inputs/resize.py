"""Resizing of pictures to the size of an image, in the ways that people know by name."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, top, right and bottom, in pixels
MODES = ("stretch", "crop", "fill", "latent")

# What is scaled and then cut is cut first where the whole would have more pixels.
_MOST_TO_CUT = 1 << 27


class Scaled(Protocol):
    """Change both sides of [h,w,3] pixels, or of a box of them."""

    def __call__(self, pixels: Pixels, width: int, height: int, box: Box | None = None) -> Pixels:
        """Return [height,width,3]."""
        ...


def flattened(pixels: Pixels, background: tuple[int, int, int]) -> Pixels:
    """Lay [H,W,3|4] pixels on a colour; returns [H,W,3]."""
    if pixels.shape[2] == 3:
        return pixels
    alpha = pixels[..., 3:].astype(np.uint32)
    mixed = pixels[..., :3] * alpha + np.array(background, np.uint32) * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def resized(
    pixels: Pixels,
    width: int,
    height: int,
    mode: str,
    scaled: Scaled | None = None,
    wraps: str = "none",
) -> Pixels:
    """Return [H,W,3] pixels at another size.

    Args:
        pixels: [h,w,3].
        width, height: wanted.
        mode: "stretch" changes the proportions; "crop" covers the size and cuts what is over,
            evenly; "fill" fits into it and stretches the outermost rows or columns over the rest.
        scaled: changes both sides; None is Lanczos' filter.
        wraps: the axes along which edges meet, "none", "x", "y" or "xy"; those of an axis that is
            cut or filled do not.

    Source: the sizes and offsets are those of the web UI's resize modes 0 to 2.
    """
    old_height, old_width = pixels.shape[:2]
    if (old_width, old_height) == (width, height):
        return pixels
    scaled = scaled or _scaled
    wider = old_width * height > width * old_height
    if wider == (mode == "crop"):
        new_width, new_height = max(1, old_width * height // old_height), height
    else:
        new_width, new_height = width, max(1, old_height * width // old_width)
    if mode == "stretch":
        new_width, new_height = width, height
    met = "".join(
        axis
        for axis, new, wanted in (("x", new_width, width), ("y", new_height, height))
        if axis in wraps and new == wanted
    )
    if met and scaled is not nearest:  # the nearest pixel lies on this side of an edge
        scaled = _wrapping(scaled, met)
    if mode == "stretch":
        return scaled(pixels, width, height)
    left, top = width // 2 - new_width // 2, height // 2 - new_height // 2
    if mode == "crop" and new_width * new_height > _MOST_TO_CUT:
        across, down = old_width / new_width, old_height / new_height
        right, bottom = (width - left) * across, (height - top) * down
        box = -left * across, -top * down, min(right, old_width), min(bottom, old_height)
        return scaled(pixels, width, height, box)
    found = scaled(pixels, new_width, new_height)
    if mode == "crop":
        return found[-top : height - top, -left : width - left]
    sides = ((top, height - top - new_height), (left, width - left - new_width), (0, 0))
    return np.pad(found, sides, mode="edge")


def _wrapping(scaled: Scaled, wraps: str) -> Scaled:
    """Return the same for pictures whose edges meet along some axes."""

    def wrapped(pixels: Pixels, width: int, height: int, box: Box | None = None) -> Pixels:
        left, top, right, bottom = box or (0, 0, pixels.shape[1], pixels.shape[0])
        x = _seen((right - left) / width) if "x" in wraps else 0
        y = _seen((bottom - top) / height) if "y" in wraps else 0
        wide = np.pad(pixels, ((y, y), (x, x), (0, 0)), mode="wrap")
        return scaled(wide, width, height, (left + x, top + y, right + x, bottom + y))

    return wrapped


def _seen(shrinks: float) -> int:
    """Return how many pixels beyond an edge a filter sees, Lanczos' being the widest."""
    return math.ceil(3 * max(shrinks, 1.0)) + 1


def padded(pixels: Pixels, width: int, height: int) -> Pixels:
    """Repeat the last row and column of [h,w,3] pixels until they have a size."""
    below, right = height - pixels.shape[0], width - pixels.shape[1]
    return np.pad(pixels, ((0, below), (0, right), (0, 0)), mode="edge")


def nearest(pixels: Pixels, width: int, height: int, box: Box | None = None) -> Pixels:
    """Return [height,width,3] of [h,w,3] pixels, or of a box of them, each the nearest one."""
    from PIL import Image

    kind = Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), kind, box))


def _scaled(pixels: Pixels, width: int, height: int, box: Box | None = None) -> Pixels:
    from PIL import Image

    kind = Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, height), kind, box))
