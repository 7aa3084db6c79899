"""Masks for inpainting, drawn as people and programs draw them."""

from __future__ import annotations

import random

import numpy as np
import numpy.typing as npt
from PIL import Image as PILImage
from PIL import ImageDraw

Mask = npt.NDArray[np.bool_]
# The share of training examples that gets each kind.
KINDS = {"rectangle": 0.35, "strokes": 0.25, "blobs": 0.25, "everything": 0.15}


def random_mask(rng: random.Random, size: int) -> tuple[str, Mask]:
    """Draw a mask.

    Args:
        rng: source of randomness.
        size: side of the picture in pixels.

    Returns:
        Its kind, one of KINDS, and [size,size], true where the picture may change.
    """
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    if kind == "everything":
        return kind, np.ones((size, size), bool)
    canvas = PILImage.new("1", (size, size))
    pen = ImageDraw.Draw(canvas)
    {"rectangle": _rectangle, "strokes": _strokes, "blobs": _blobs}[kind](pen, rng, size)
    return kind, np.array(canvas)


def _rectangle(pen: ImageDraw.ImageDraw, rng: random.Random, size: int) -> None:
    width, height = (rng.uniform(0.2, 0.8) * size for _ in range(2))
    left, top = (rng.uniform(0, size - side) for side in (width, height))
    pen.rectangle((left, top, left + width, top + height), fill=1)


def _strokes(pen: ImageDraw.ImageDraw, rng: random.Random, size: int) -> None:
    for _ in range(rng.randint(1, 4)):
        width = round(rng.uniform(0.06, 0.2) * size)
        points = [_point(rng, size)]
        for _ in range(rng.randint(1, 4)):
            x, y = points[-1]
            points.append((x + rng.uniform(-0.4, 0.4) * size, y + rng.uniform(-0.4, 0.4) * size))
        pen.line(points, fill=1, width=width, joint="curve")
        for x, y in points:
            pen.circle((x, y), width / 2, fill=1)


def _blobs(pen: ImageDraw.ImageDraw, rng: random.Random, size: int) -> None:
    for _ in range(rng.randint(1, 3)):
        x, y = _point(rng, size)
        for _ in range(rng.randint(1, 5)):
            radius = rng.uniform(0.08, 0.25) * size
            aside = [rng.uniform(-radius, radius) for _ in range(2)]
            pen.circle((x + aside[0], y + aside[1]), radius, fill=1)


def _point(rng: random.Random, size: int) -> tuple[float, float]:
    return rng.uniform(0.1, 0.9) * size, rng.uniform(0.1, 0.9) * size
