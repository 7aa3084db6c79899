"""Thinning of lines: what is left of strokes one pixel wide."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Lines = NDArray[np.bool_]


def are_thin(lines: Lines) -> bool:
    """Say whether most pixels of lines [H,W] lie in no square of 3x3 that is all line."""
    height, width = lines.shape
    wide = np.pad(lines, 2)
    core = np.logical_and.reduce(_around(wide, height + 2, width + 2))
    kept = np.logical_or.reduce(_around(core, height, width))
    return bool(2 * kept.sum() < lines.sum())


def thinned(lines: Lines) -> Lines:
    """Return lines [H,W] one pixel wide, connected as before.

    Pixels of the border are taken away where that neither parts a line nor shortens its end, from
    two sides in turns, until nothing more can be.

    Source: "A Fast Parallel Algorithm for Thinning Digital Patterns" (Zhang and Suen 1984).
    """
    wide = np.pad(lines, 1)
    flat, row = wide.reshape(-1), wide.shape[1]
    # Neighbours in a circle that begins above.
    circle = np.array([-row, 1 - row, 1, row + 1, row, row - 1, -1, -row - 1])
    corners = ((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))
    places, idle = np.flatnonzero(flat), 0
    while idle < 2:
        for triples in corners:
            near = flat[places[:, None] + circle]
            count = near.sum(axis=1)
            begins = (~near & np.roll(near, -1, axis=1)).sum(axis=1)
            goes = (count >= 2) & (count <= 6) & (begins == 1)
            for triple in triples:
                goes &= ~near[:, triple].all(axis=1)
            flat[places[goes]] = False
            places = places[~goes]
            idle = 0 if goes.any() else idle + 1
    found: Lines = wide[1:-1, 1:-1].copy()
    return found


def _around(wide: Lines, height: int, width: int) -> list[Lines]:
    """Return the nine shifts [height,width] of a map that is larger by one at each side."""
    return [wide[y : y + height, x : x + width] for y in range(3) for x in range(3)]
