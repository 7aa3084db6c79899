"""Asynchronous copies of a warp that have not arrived in shared memory.

Source: "Parallel Thread Execution ISA" (NVIDIA), "Async-group mechanism".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from support.ptx.warps import Warps

Array = NDArray[Any]


class Copies:
    """Hold the asynchronous copies of a warp that have not arrived."""

    def __init__(self, width: int) -> None:
        self._group = np.zeros(width, np.int64)
        self._flying: list[tuple[Array, Array, Array, Array]] = []

    def begin(self, warps: Warps, addresses: Array, values: Array, lanes: Any) -> None:
        """Start a copy of [n,size] bytes for the lanes."""
        who = np.arange(warps.width)[lanes]
        block, actor = warps.block[who], warps.actor[who]
        places = warps.launch.shared.begin_copy(warps, addresses, values.shape[1], block, actor)
        self._flying.append((who, self._group[who], places, values))

    def commit(self, warps: Warps) -> None:
        """End the running lanes' groups; what they copy next belongs to new ones."""
        self._group = self._group + (True if warps.mask is None else warps.mask)

    def wait(self, warps: Warps, left: int, everything: bool) -> None:
        """Let groups arrive until so many committed ones are left, or all and what is in none."""
        runs = np.ones(warps.width, bool) if warps.mask is None else warps.mask
        below = self._group + 1 if everything else self._group - left
        flying = []
        for who, group, places, values in self._flying:
            done = (group < below[who]) & runs[who]
            if done.any():
                lanes = who[done]
                block, actor = warps.block[lanes], warps.actor[lanes]
                warps.launch.shared.end_copy(warps, places[done], values[done], block, actor)
            if not done.all():
                flying.append((who[~done], group[~done], places[~done], values[~done]))
        self._flying = flying

    def fly_for(self, lanes: NDArray[np.bool_]) -> bool:
        """Return whether copies of some lanes have not arrived."""
        return any(lanes[who].any() for who, *_ in self._flying)
