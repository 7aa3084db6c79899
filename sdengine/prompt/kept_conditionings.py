"""Kept conditionings: what prompts became, for requests that ask for the same again."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from sdengine.prompt.conditioning import Conditioning

MAX_BYTES = 32 << 20


class KeptConditionings:
    """Keep the conditionings that were used last, within a number of bytes.

    Args:
        max_bytes: of all that are kept; a larger one is not.
    """

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, Conditioning] = OrderedDict()

    def find(self, key: Hashable) -> Conditioning | None:
        """Return the conditioning of a key, if it is kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def keep(self, key: Hashable, conditioning: Conditioning) -> None:
        """Keep a conditioning, which nobody writes to from now on."""
        for array in (conditioning.prompt_embeds, conditioning.pooled):
            if array is not None:
                array.flags.writeable = False
        self._kept[key] = conditioning
        while sum(map(_size_bytes, self._kept.values())) > self._max_bytes:
            self._kept.popitem(last=False)

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()


def _size_bytes(conditioning: Conditioning) -> int:
    pooled = conditioning.pooled
    return conditioning.prompt_embeds.nbytes + (0 if pooled is None else pooled.nbytes)
