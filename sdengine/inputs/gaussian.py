"""Gaussian blur of arrays, separable, with the cut-off and the border that callers name."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def gaussian(
    values: NDArray[Any], sigma: float, reach: int, border: Literal["edge", "reflect"]
) -> NDArray[np.float64]:
    """Blur an array along its first two axes.

    Args:
        values: [H,W] or [H,W,C].
        sigma: deviation in pixels, positive.
        reach: pixels on each side after which the kernel is cut off.
        border: what lies outside: the outermost pixels again, or the picture mirrored at the middle
            of its outermost pixels.
    """
    places = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (places / sigma) ** 2)
    kernel /= kernel.sum()
    found = values.astype(np.float64)
    for axis in (0, 1):
        sides = [(reach, reach) if a == axis else (0, 0) for a in range(found.ndim)]
        wide = np.moveaxis(np.pad(found, sides, border), axis, 0)
        size = found.shape[axis]
        total = kernel[0] * wide[:size]
        for first, share in enumerate(kernel[1:], 1):
            total += share * wide[first : first + size]
        found = np.moveaxis(total, 0, axis)
    return found
