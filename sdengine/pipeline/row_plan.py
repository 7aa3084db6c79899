"""Row plan: the conditioning of each row of the U-Net's batch, and what its output counts.

Rows of one evaluation: the unconditional half first when there is one, then a block for each part
that prompts are joined of, every block with one row an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sdengine.prompt.plan import ImageRows

Array = NDArray[np.float32]


@dataclass(frozen=True)
class RowPlan:
    """The rows of one evaluation.

    Args:
        rows: [blocks*B] index into the conditioning's prompts.
        weights: [parts,B] fp32 weight of each part; zero where an image has fewer parts.
        has_negative: the first block is the unconditional one.
        is_guided: guidance scale and rescale apply; else the scale is 1, and without parts joined
            by AND there is no unconditional block.
    """

    rows: tuple[int, ...]
    weights: Array
    has_negative: bool
    is_guided: bool = True

    @property
    def num_images(self) -> int:
        """Number of images B."""
        return int(self.weights.shape[1])

    @cached_property
    def is_plain(self) -> bool:
        """Whether one part of weight 1 is all there is, as the native step expects."""
        return self.weights.shape[0] == 1 and bool((self.weights == 1).all())


def lay_out_rows(
    steps: Sequence[Sequence[ImageRows]], images: Sequence[int], guided: range
) -> list[RowPlan]:
    """Lay out the rows of each step; steps with equal rows share one plan object.

    Args:
        steps: of a prompt plan, the rows of every image of the request.
        images: indices of those that are evaluated together.
        guided: the steps inside the guidance interval. At the others the unconditional rows count
            nothing, unless parts joined by AND are weighed against them.
    """
    by_step = [[rows[image] for image in images] for rows in steps]
    blocks = max(len(parts) for rows in by_step for _, parts in rows)
    made: dict[tuple[tuple[int, ...], tuple[float, ...], bool], RowPlan] = {}
    plans = []
    for index, step in enumerate(by_step):
        is_guided = index in guided
        has_negative = step[0][0] is not None and (is_guided or blocks > 1)
        rows = [negative for negative, _ in step if negative is not None and has_negative]
        weights = np.zeros((blocks, len(images)), dtype=np.float32)
        for block in range(blocks):
            for i, (_, parts) in enumerate(step):
                # A missing part is computed from the first one and counts nothing.
                row, weight = parts[block] if block < len(parts) else (parts[0][0], 0.0)
                rows.append(row)
                weights[block, i] = weight
        key = (tuple(rows), tuple(weights.ravel().tolist()), is_guided)
        plan = RowPlan(tuple(rows), weights, has_negative, is_guided)
        plans.append(made.setdefault(key, plan))
    return plans
