"""Control picture: what a control reads, resized so that maps and lines stay what they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine.inputs.picture import Picture, Pixels
from sdengine.inputs.recorded import Recorded
from sdengine.inputs.resize import Box, flattened, nearest, resized
from sdengine.inputs.thinning import are_thin, thinned

# Pictures of so few colours are maps, whose colours mean something and must not be mixed.
_MOST_OF_A_MAP = 199
# Beyond this a line of one pixel is a bar, whose thinning takes long.
_MOST_THINNED = 16
_BLACK = (0, 0, 0)


def control_pixels(image: Recorded) -> Pixels:
    """Return a given picture [H,W,3] as controls read it: on black."""
    assert isinstance(image, Picture)
    return flattened(image.pixels, _BLACK)


def resized_control(pixels: Pixels, width: int, height: int, mode: str) -> Pixels:
    """Return [H,W,3] pixels at another size.

    Maps of 3 to 199 colours take the nearest pixel's; of two colours the average is rounded to one
    of them, by a threshold that suits the picture, and bright lines stay one pixel wide where they
    grow at most 16 times; others shrink by averages and grow by cubic interpolation.

    Args:
        pixels: [h,w,3].
        width, height: wanted.
        mode: as for `resized`.

    Source: the rules of the web UI's ControlNet extension; the threshold is that of "A Threshold
    Selection Method from Gray-Level Histograms" (Otsu 1979).
    """
    if pixels.shape[:2] == (height, width):
        return pixels
    colours = _colours(pixels)
    if colours is not None and len(colours) > 2:
        return resized(pixels, width, height, mode, nearest)
    if colours is None or len(colours) == 1:
        return resized(pixels, width, height, mode, _smooth)
    share = (pixels != colours[0]).any(axis=2).astype(np.uint8) * 255
    grey = np.repeat(share[..., None], 3, axis=2)
    found = resized(grey, width, height, mode, _smooth)[..., 0]
    is_bright = found > _threshold(found)
    times = max(width / pixels.shape[1], height / pixels.shape[0])
    if times <= _MOST_THINNED and are_thin(share > 0):
        is_bright = thinned(is_bright)
    return np.asarray(colours[is_bright.astype(int)])


def _colours(pixels: Pixels) -> Pixels | None:
    """Return the distinct colours [n,3] of a map, by brightness; None where they are many."""
    packed = pixels.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    found = np.unique(packed)
    if len(found) > _MOST_OF_A_MAP:
        return None
    return np.stack([found >> 16, found >> 8 & 255, found & 255], axis=1).astype(np.uint8)


def _threshold(grey: NDArray[np.uint8]) -> int:
    """Return the value that parts a picture best into two classes, the lower one up to it."""
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below = counts.cumsum()
    sums = (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return int(np.nan_to_num(between).argmax())


def _smooth(pixels: Pixels, width: int, height: int, box: Box | None = None) -> Pixels:
    from PIL import Image

    left, top, right, bottom = box or (0, 0, pixels.shape[1], pixels.shape[0])
    shrinks = width * height < (right - left) * (bottom - top)
    kind = Image.Resampling.BOX if shrinks else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(pixels).resize((width, height), kind, box))
