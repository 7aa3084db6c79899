"""Global memory: buffers with guard zones between them, whose every access is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.ptx.faults import PtxFault

# Anything out of bounds by less than this falls into a guard zone, not into another buffer.
_GUARD_BYTES = 1 << 18
_BASE = 0x7F10_0000_0010
_POISON = 0xFB


@dataclass(frozen=True)
class Buffer:
    """Name a piece of global memory of some bytes, or a place within it."""

    name: str
    address: int
    size: int

    def at(self, offset: int) -> Buffer:
        """Return a pointer to a byte of it."""
        return Buffer(self.name, self.address + offset, self.size - offset)


class GlobalMemory:
    """Hold the buffers that a launch may touch.

    Args:
        unique_writes: whether a byte may be written by one thread only. Otherwise several may write
            it, but the same value, since nothing says which of them is last.
    """

    def __init__(self, unique_writes: bool = False) -> None:
        self._unique = unique_writes
        self._buffers: list[Buffer] = []
        self._pieces = [_piece(np.full(_GUARD_BYTES, _POISON, np.uint8), False, False)]
        self._taken = _GUARD_BYTES

    def add(
        self, name: str, content: NDArray[Any], known: Any = True, writable: bool = False
    ) -> Buffer:
        """Put a copy of an array into memory.

        Args:
            name: for messages.
            content: of any type.
            known: whether it may be read, for all bytes or each.
            writable: whether it may be written.

        Returns:
            Where it lies: at a multiple of 16, as kernels may assume, and of no more.
        """
        raw = np.ascontiguousarray(content).reshape(-1).view(np.uint8)
        raw = np.where(np.broadcast_to(known, raw.shape), raw, np.uint8(_POISON))
        buffer = Buffer(name, _BASE + self._taken, len(raw))
        guard = np.full(_GUARD_BYTES - len(raw) % 32, _POISON, np.uint8)
        self._pieces += [_piece(raw, known, writable), _piece(guard, False, False)]
        self._taken += len(raw) + len(guard)
        self._buffers.append(buffer)
        return buffer

    def freeze(self) -> None:
        """Lay the buffers out; none can be added afterwards."""
        pieces = zip(*self._pieces, strict=True)
        self._bytes, self._known, self._writable = (np.concatenate(part) for part in pieces)
        self._owner = np.full(len(self._bytes), -1, np.int16)
        for number, buffer in enumerate(self._buffers):
            at = buffer.address - _BASE
            self._owner[at : at + buffer.size] = number
        self._writer = np.full(len(self._bytes), -1, np.int64)

    def content(self, buffer: Buffer) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return the bytes that a buffer holds now, and whether each was ever written."""
        at = buffer.address - _BASE
        piece = slice(at, at + buffer.size)
        return self._bytes[piece], self._known[piece]

    def load(self, addresses: NDArray[np.uint64], size: int) -> NDArray[np.uint8]:
        """Return the bytes at each address as [n,size].

        Raises:
            PtxFault: one is out of bounds, not aligned, or holds what was never written.
        """
        places = self._places(addresses, size, "read")
        if not self._known[places].all():
            raise PtxFault(f"global memory is read before it is written, in {self._at(places[0])}")
        return self._bytes[places]

    def store(
        self, addresses: NDArray[np.uint64], values: NDArray[np.uint8], threads: NDArray[np.int64]
    ) -> None:
        """Write [n,size] bytes at the addresses.

        Args:
            threads: who writes each row, by a number that is unique in the launch.

        Raises:
            PtxFault: one is out of bounds, not aligned, or written by several threads.
        """
        places = self._places(addresses, values.shape[1], "written")
        if not self._writable[places].all():
            raise PtxFault(f"an input is written, {self._at(places[0])}")
        writers = np.broadcast_to(threads[:, None], places.shape)
        others = (self._writer[places] >= 0) & (self._writer[places] != writers)
        if others.any() and (self._unique or (self._bytes[places] != values)[others].any()):
            row = int(np.argmax(others.any(1)))
            raise PtxFault(f"two threads write {self._at(places[row])}")
        self._bytes[places] = values
        self._known[places] = True
        self._writer[places] = writers
        if (self._bytes[places] != values).any() or (
            self._unique and (self._writer[places] != writers).any()
        ):
            raise PtxFault("lanes of one instruction write to the same place")

    def update(self, address: int, size: int) -> NDArray[np.uint8]:
        """Return the bytes at an address for an atomic operation to change.

        Raises:
            PtxFault: out of bounds, not aligned, not writable or not known.
        """
        places = self._places(np.array([address], np.uint64), size, "updated")[0]
        if not (self._writable[places].all() and self._known[places].all()):
            raise PtxFault(f"an atomic operation cannot update {self._at(places)}")
        return self._bytes[places[0] : places[0] + size]

    def _places(self, addresses: NDArray[np.uint64], size: int, what: str) -> NDArray[np.int64]:
        at = (addresses - np.uint64(_BASE)).view(np.int64)
        outside = (at < 0) | (at > len(self._bytes) - size)
        if not outside.any():
            owner = self._owner[at]
            outside = (owner < 0) | (owner != self._owner[at + size - 1])
        if outside.any():
            row = int(np.argmax(outside))
            raise PtxFault(
                f"{size} bytes out of bounds are {what} by {int(outside.sum())} lanes, "
                f"{self._nearest(int(at[row]))}"
            )
        if (addresses % np.uint64(size)).any():
            raise PtxFault(f"{size} bytes are {what} at an address that is no multiple of {size}")
        return np.asarray(at[:, None] + np.arange(size))

    def _at(self, places: NDArray[np.int64]) -> str:
        buffer = self._buffers[self._owner[places[0]]]
        return f"byte {int(places[0]) - (buffer.address - _BASE)} of {buffer.name}"

    def _nearest(self, at: int) -> str:
        def distance(buffer: Buffer) -> int:
            start = buffer.address - _BASE
            return max(start - at, at - start - buffer.size, 0)

        buffer = min(self._buffers, key=distance)
        return f"at byte {at - (buffer.address - _BASE)} of {buffer.name}, which has {buffer.size}"


def _piece(raw: NDArray[np.uint8], known: Any, writable: bool) -> tuple[Any, Any, Any]:
    """Return bytes, and for each whether it may be read and written."""
    return raw, np.broadcast_to(known, raw.shape), np.full(len(raw), writable)
