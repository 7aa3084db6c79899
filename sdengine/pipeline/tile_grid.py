"""Tile grid: where overlapping tiles lie on a canvas, and how much each counts where they meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
# Of the Gaussian over a tile whose side is 1, as in the reference below.
_VARIANCE = 0.01


@dataclass(frozen=True)
class Tile:
    """One tile.

    Args:
        rows, columns: that it covers, in the canvas's cells.
        weights: [h,w] fp32, how much it counts there; those of all tiles over a cell sum to 1.
    """

    rows: slice
    columns: slice
    weights: Array

    def of(self, canvas: NDArray[Any], scale: int = 1) -> NDArray[Any]:
        """Return the tile's view of [...,H,W], which has `scale` values for a cell a side."""
        rows, columns = (
            slice(one.start * scale, one.stop * scale) for one in (self.rows, self.columns)
        )
        return canvas[..., rows, columns]


@dataclass(frozen=True)
class TileGrid:
    """Tiles of one size over a canvas; the last of a row is shifted inward, never narrower.

    Args:
        canvas: height and width in cells.
        tile: the same of a tile; a side that the canvas does not have is cut to it.
        overlap: cells that neighbours share at least, less than a side of the tile.
        cell: pixels of a cell's side.

    Source: "Mixture of Diffusers for scene composition and high resolution image generation"
    (Jiménez 2023): Gaussian weights of a variance of 0.01 of the tile's side squared, summing to 1.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    overlap: int
    cell: int

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of each tile."""
        height, width = map(min, self.tile, self.canvas)
        return height, width

    @property
    def is_whole(self) -> bool:
        """Whether one tile covers the canvas."""
        return self.sides == self.canvas

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height of each tile in pixels."""
        height, width = self.sides
        return width * self.cell, height * self.cell

    @property
    def count(self) -> int:
        """The number of tiles."""
        rows, columns = (
            len(starts(size, side, side - self.overlap))
            for size, side in zip(self.canvas, self.sides, strict=True)
        )
        return rows * columns

    def __iter__(self) -> Iterator[Tile]:
        """Go through the tiles row by row."""
        return iter(self.tiles)

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """All tiles, row by row."""
        downward, across = (
            _weighted(size, side, side - self.overlap)
            for size, side in zip(self.canvas, self.sides, strict=True)
        )
        return tuple(
            Tile(rows, columns, np.outer(down, over).astype(np.float32))
            for rows, down in downward
            for columns, over in across
        )


def starts(size: int, side: int, stride: int) -> list[int]:
    """Return where tiles of a side begin on an axis, each a stride after the one before it."""
    return [*range(0, size - side, max(stride, 1)), size - side]


def _weighted(size: int, side: int, stride: int) -> list[tuple[slice, NDArray[np.float64]]]:
    """Return the parts of an axis that tiles cover, and their weights [side] there.

    The weights of a tile are a product of those of its two axes, and so is their sum.
    """
    places = (np.arange(side) - (side - 1) / 2) / side
    bell = np.exp(-(places**2) / (2 * _VARIANCE))
    parts = [slice(first, first + side) for first in starts(size, side, stride)]
    total = np.zeros(size)
    for part in parts:
        total[part] += bell
    return [(part, bell / total[part]) for part in parts]
