"""Hints: what control networks read in benchmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


def edges(side: int) -> Picture:
    """Return bright shapes on black [side,side,3]."""
    y, x = np.mgrid[0:side, 0:side]
    lit = (np.sin(x / 7) * np.cos(y / 5) > 0.3).astype(np.uint8) * 255
    return np.repeat(lit[..., None], 3, axis=2)
