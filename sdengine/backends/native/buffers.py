"""Places for buffers in one block of memory, by when each is in use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LINE = 64


@dataclass
class Buffer:
    """Some bytes that are in use from one moment to another, both included.

    Args:
        size: in bytes, a multiple of LINE.
        first, last: moments.
        offset: where `plan_buffers` put it.
    """

    size: int
    first: int
    last: int
    offset: int = 0


def plan_buffers(buffers: Sequence[Buffer]) -> int:
    """Place buffers so that none overlaps another in use at the same time; return the total bytes.

    The largest are placed first, each into the smallest gap that holds it. Source: "Efficient
    Memory Management for Deep Neural Net Inference" (Pisarchyk and Lee 2020), greedy by size.
    """
    placed: list[Buffer] = []
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        together = [b for b in placed if b.first <= buffer.last and buffer.first <= b.last]
        together.sort(key=lambda b: b.offset)
        best, best_gap, end = None, None, 0
        for other in together:
            gap = other.offset - end
            if gap >= buffer.size and (best_gap is None or gap < best_gap):
                best, best_gap = end, gap
            end = max(end, other.offset + other.size)
        buffer.offset = end if best is None else best
        placed.append(buffer)
    return max((b.offset + b.size for b in placed), default=0)


def whole_lines(size: int) -> int:
    """Round bytes up to whole cache lines."""
    return -(-size // LINE) * LINE
