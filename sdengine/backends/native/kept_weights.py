"""Kept weights: merged ones of the last few weight sets, for requests that go back to them."""

from __future__ import annotations

from sdengine.backends.native.packed_cache import PackedWeights
from sdengine.machine import free_memory_bytes

_SHARE = 4


class KeptWeights:
    """Keep those that were used last, while they take no more than a quarter of what is free.

    What is free is counted without them. Those in use stay anyway, with whoever uses them.

    Args:
        keeps: False under a limit of memory, where nothing is kept beside what is in use.
    """

    def __init__(self, keeps: bool) -> None:
        self._keeps = keeps
        self._kept: list[PackedWeights] = []

    def keep(self, weights: PackedWeights) -> None:
        """Keep merged weights, and forget the oldest that are too many."""
        if not self._keeps or weights.own_bytes == 0:
            return
        self._kept = [one for one in self._kept if one is not weights] + [weights]
        self.make_room(0)

    def make_room(self, own_bytes: int) -> None:
        """Forget the oldest that could not be kept beside one of a size, before that is made."""
        taken = sum(one.own_bytes for one in self._kept)
        most = (free_memory_bytes() + taken) // _SHARE
        while self._kept and taken + own_bytes > most:
            taken -= self._kept.pop(0).own_bytes

    def clear(self) -> None:
        """Forget all."""
        self._kept = []
