"""Buckets: sizes of about one area, so that pictures of any shape are hardly cut.

Source: the bucketing by aspect ratio that NovelAI described for its Stable Diffusion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdengine.inputs.picture import Pixels
from sdengine.inputs.resize import resized

Size = tuple[int, int]  # width, height
_MOST_ASPECT = 4.0


@dataclass(frozen=True)
class Placed:
    """A picture brought to its bucket's size.

    Args:
        pixels: [h,w,3] uint8.
        original: width and height that it had.
        crop: what was cut off above and at the left, in pixels of the bucket.
    """

    pixels: Pixels
    original: Size
    crop: tuple[int, int]

    @property
    def size(self) -> Size:
        """Width and height now."""
        return self.pixels.shape[1], self.pixels.shape[0]


def bucket_sizes(resolution: int, step: int) -> list[Size]:
    """Return sizes of at most the area of a square, from tall to wide.

    Args:
        resolution: side of the square.
        step: what every side is a multiple of.
    """
    found = {(resolution, resolution)}
    width = step * math.ceil(resolution / math.sqrt(_MOST_ASPECT) / step)
    while width <= resolution:
        height = resolution * resolution // width // step * step
        if height <= _MOST_ASPECT * width:
            found |= {(width, height), (height, width)}
        width += step
    return sorted(found, key=lambda size: (size[0] / size[1], size))


def nearest_size(sizes: Sequence[Size], width: int, height: int) -> Size:
    """Return the size whose shape is nearest to a picture's; of equals the largest."""
    wanted = math.log(width / height)
    return min(sizes, key=lambda s: (abs(math.log(s[0] / s[1]) - wanted), -s[0] * s[1]))


def place(pixels: Pixels, size: Size) -> Placed:
    """Scale [H,W,3] pixels to cover a size and cut what is over, evenly."""
    height, width = pixels.shape[:2]
    scale = max(size[0] / width, size[1] / height)
    crop = tuple(
        max(round(side * scale) - wanted, 0) // 2
        for side, wanted in ((height, size[1]), (width, size[0]))
    )
    return Placed(resized(pixels, *size, "crop"), (width, height), (crop[0], crop[1]))
