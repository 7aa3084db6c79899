"""Outpainting: a picture on a larger canvas, what fills the rest, how far it may change."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sdengine.inputs.mask import Weights, filled
from sdengine.inputs.picture import Pixels

FILLS = ("edge", "mirror", "blur", "noise")
_MOST_SHIFT, _MOST_GAIN, _FLAT, _OTHER = 16.0, 1.25, 8.0, 48.0


@dataclass(frozen=True, repr=False)
class Sides:
    """Pixels by which a picture grows at each side."""

    left: int = 0
    top: int = 0
    right: int = 0
    bottom: int = 0

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return width and height of the canvas of a picture."""
        return self.left + width + self.right, self.top + height + self.bottom

    def __repr__(self) -> str:
        """As the command takes them."""
        sides = {field.name: getattr(self, field.name) for field in fields(self)}
        return ",".join(f"{name}={pixels}" for name, pixels in sides.items() if pixels) or "0"


def canvas(pixels: Pixels, sides: Sides, fill: str) -> Pixels:
    """Return a picture [h,w,3] on its canvas [H,W,3], the rest filled with content of its own.

    A plain border would survive sampling as a border; see `FILLS`.

    Args:
        pixels: of the picture, whose bytes stay.
        sides: by which it grows.
        fill: "edge" stretches the outermost rows and columns; "mirror" reflects the picture;
            "blur" lays it over itself blurred from coarse to fine; "noise" is noise with the
            picture's spectrum and histogram.
    """
    around = ((sides.top, sides.bottom), (sides.left, sides.right), (0, 0))
    found = np.pad(pixels, around, "symmetric" if fill == "mirror" else "edge")
    height, width = pixels.shape[:2]
    own = np.s_[sides.top : sides.top + height, sides.left : sides.left + width]
    if fill == "blur":
        weights = np.ones(found.shape[:2], np.float32)
        weights[own] = 0
        found = np.array(filled(found, weights))
        found[own] = pixels
    elif fill == "noise":
        found = _shaped_noise(pixels, found.shape[0], found.shape[1])
        found[own] = pixels
    return found


def ramp(size: tuple[int, int], sides: Sides, overlap: int) -> Weights:
    """Return how much of the result is laid over the canvas, [H,W]: 1 where the picture was not.

    From a side that grows it falls over the overlap to 0 inside the picture.

    Args:
        size: width and height of the picture.
        sides: by which it grows.
        overlap: pixels of the picture.
    """
    kept = [
        _kept(count, before, after, overlap)
        for count, before, after in (
            (size[1], sides.top, sides.bottom),
            (size[0], sides.left, sides.right),
        )
    ]
    return np.asarray(1 - np.multiply.outer(*kept), np.float32)


def _kept(count: int, before: int, after: int, overlap: int) -> NDArray[np.float64]:
    """Return along one axis of the canvas how much of the picture is kept."""
    places = np.arange(-before, count + after) + 0.5
    kept = np.ones(len(places))
    for grows, depth in ((before, places), (after, count - places)):
        if grows:
            kept *= (depth / overlap).clip(0, 1) if overlap else depth > 0
    return kept


def matched(image: Pixels, original: Pixels, strip: NDArray[np.bool_]) -> Pixels:
    """Give an image the mean and deviation that the original has in a strip, in each channel.

    Pixels that differ by more than a change of tone show something else and do not count; the mean
    moves by at most 16 of 255, the deviation by at most a quarter. So an extension that is itself
    extended does not drift.

    Args:
        image, original: [H,W,3].
        strip: [H,W], where both are known.
    """
    own, wanted = (one[strip].astype(np.float64) for one in (image, original))
    same = np.abs(own - wanted).max(axis=1, initial=0) <= _OTHER
    if same.sum() < 0.1 * len(same) or not len(same):
        return image
    own, wanted = own[same], wanted[same]
    spread, meant = own.std(axis=0), wanted.std(axis=0)
    is_flat = np.minimum(spread, meant) < _FLAT  # and says nothing of contrast
    gain = np.where(is_flat, 1, meant / np.maximum(spread, _FLAT)).clip(1 / _MOST_GAIN, _MOST_GAIN)
    middle = own.mean(axis=0)
    shift = (wanted.mean(axis=0) - middle).clip(-_MOST_SHIFT, _MOST_SHIFT)
    values = (image - middle) * gain + middle + shift
    return np.asarray(np.rint(values).clip(0, 255), np.uint8)


def _shaped_noise(pixels: Pixels, height: int, width: int) -> Pixels:
    """Return noise [height,width,3] with a picture's magnitude spectrum and histogram.

    All channels get the same random phases, which keeps colours together that go together. The
    noise is always the same, so that an image of a batch equals the one made alone.

    Source: "Random Phase Textures: Theory and Synthesis" (Galerne, Gousseau and Morel 2011).
    """
    window = np.multiply.outer(*(np.hanning(side + 2)[1:-1] for side in pixels.shape[:2]))
    drawn = np.random.Generator(np.random.PCG64(0)).standard_normal((height, width), np.float32)
    turn = np.fft.rfft2(drawn)
    turn /= np.maximum(np.abs(turn), 1e-12)
    found = np.empty((height, width, 3), np.uint8)
    for channel in range(3):
        values = pixels[..., channel].astype(np.float32)
        spectrum = np.fft.rfft2((values - values.mean()) * window, s=(height, width))
        shaped = np.fft.irfft2(spectrum * turn, s=(height, width))
        order = np.argsort(shaped, axis=None, kind="stable")
        levels = np.sort(values, axis=None)
        places = np.arange(order.size) * levels.size // order.size
        flat = np.empty(order.size, np.uint8)
        flat[order] = levels[places].astype(np.uint8)
        found[..., channel] = flat.reshape(height, width)
    return found
