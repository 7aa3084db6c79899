"""CLIP pictures: what an image encoder reads of a picture.

Source: "Learning Transferable Visual Models From Natural Language Supervision" (Radford et al.
2021) and its published preprocessing: the shorter side is resized by a bicubic filter, the middle
is cut out, and colours are centred.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sdengine.inputs.picture import Picture
from sdengine.inputs.resize import flattened

Floats = NDArray[np.float32]
_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
_DEVIATION = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
_BLACK = (0, 0, 0)
_MOST_TIMES = 64


def clip_pixels(picture: Picture, size: int) -> Floats:
    """Return a picture [3,size,size] as CLIP reads it; transparent pixels count as black.

    Args:
        picture: of any size.
        size: of the encoder's square, in pixels.
    """
    from PIL import Image

    pixels = flattened(picture.pixels, _BLACK)
    height, width = pixels.shape[:2]
    # Of the longer side whole pixels are taken, as transformers does.
    larger = max(size, int(size * max(width, height) / min(width, height)))
    new = (size, larger) if width <= height else (larger, size)
    left, top = (new[0] - size) // 2, (new[1] - size) // 2
    bicubic = Image.Resampling.BICUBIC
    if larger > _MOST_TIMES * size:  # the middle alone, where the whole would take much memory
        across, down = width / new[0], height / new[1]
        box = (left * across, top * down, (left + size) * across, (top + size) * down)
        middle = np.asarray(Image.fromarray(pixels).resize((size, size), bicubic, box))
    else:
        resized = Image.fromarray(pixels).resize(new, bicubic)
        middle = np.asarray(resized)[top : top + size, left : left + size]
    values = (middle.astype(np.float32) / np.float32(255) - _MEAN) / _DEVIATION
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def patches(pixels: Floats, patch: int) -> Floats:
    """Lay the squares of a picture side by side, behind an empty one for the class token.

    Args:
        pixels: [3,size,size], as `clip_pixels` returns it; zeros for no picture.
        patch: pixels along one side of a square.

    Returns:
        [1, 3, patch, (1 + squares) * patch].
    """
    count = pixels.shape[1] // patch
    squares = pixels.reshape(3, count, patch, count, patch).transpose(0, 2, 1, 3, 4)
    row = squares.reshape(3, patch, count * count * patch)
    return np.ascontiguousarray(np.pad(row, ((0, 0), (0, 0), (patch, 0)))[None])
