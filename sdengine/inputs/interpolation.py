"""Interpolation of maps: latents and depth at another size, in the ways that torch names."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Maps = TypeVar("Maps", NDArray[np.float32], NDArray[np.float64])
Float64 = NDArray[np.float64]
# Reach of the kernel in cells, and the parameter of cubic ones.
_KERNELS = {
    "bilinear": (1.0, 0.0),
    "bicubic": (2.0, -0.75),
    "bilinear_antialiased": (1.0, 0.0),
    "bicubic_antialiased": (2.0, -0.5),
}
KINDS = ("nearest", "nearest_exact", *_KERNELS)


def interpolated(maps: Maps, height: int, width: int, kind: str, wraps: str = "none") -> Maps:
    """Resize [...,h,w] between the middles of cells.

    Args:
        maps: given.
        height, width: wanted, at least 1.
        kind: one of KINDS. Antialiased kernels widen where maps shrink, and leave out what lies
            beyond the border; the others take the outermost cell there.
        wraps: the axes along which edges meet, "none", "x", "y" or "xy": beyond the border lies
            what is at the other edge.

    Source: "Cubic Convolution Interpolation for Digital Image Processing" (Keys 1981); parameters
    and borders are those of torch's `interpolate`.
    """
    for axis, size, name in ((-2, height, "y"), (-1, width, "x")):
        indices, weights = _taps(maps.shape[axis], size, kind, name in wraps)
        shape = (-1, 1) if axis == -2 else (-1,)
        found = np.zeros_like(np.take(maps, np.zeros(size, int), axis))
        for tap in range(indices.shape[1]):
            share = weights[:, tap].astype(maps.dtype).reshape(shape)
            found += np.take(maps, indices[:, tap], axis) * share
        maps = found
    return maps


def _taps(count: int, size: int, kind: str, wraps: bool) -> tuple[NDArray[np.int_], Float64]:
    """Return the cells [size,K] that each new one is made of, and their shares."""
    scale = count / size
    if kind in ("nearest", "nearest_exact"):
        first = np.arange(size) + (0.5 if kind == "nearest_exact" else 0)
        chosen = np.minimum((first * scale).astype(int), count - 1)
        return chosen[:, None], np.ones((size, 1))
    reach, cubic = _KERNELS[kind]
    is_antialiased = kind.endswith("antialiased")
    wider = max(scale, 1.0) if is_antialiased else 1.0
    middle = (np.arange(size) + 0.5) * scale - 0.5
    taps = 2 * int(np.ceil(reach * wider)) + 1
    indices = np.floor(middle).astype(int)[:, None] - taps // 2 + np.arange(taps + 1)
    weights = _kernel(np.abs(indices - middle[:, None]) / wider, reach, cubic)
    if is_antialiased:
        if not wraps:
            weights *= (indices >= 0) & (indices < count)
        weights /= weights.sum(axis=1, keepdims=True)
    used = weights.any(axis=0)
    indices = indices % count if wraps else indices.clip(0, count - 1)
    return indices[:, used], weights[:, used]


def _kernel(distance: Float64, reach: float, cubic: float) -> Float64:
    if reach == 1:
        return np.maximum(1 - distance, 0)
    near = ((cubic + 2) * distance - (cubic + 3)) * distance**2 + 1
    far = cubic * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
