"""Shared memory of every block: poisoned, bounds checked, and watched for races.

A race is two accesses to a byte, one of them a write, by two warps with no barrier of the block in
between, or by two lanes of a warp with no barrier of the warp in between. They are found from who
touched a byte last and when, whatever order the warps happened to run in. Bytes that an
asynchronous copy has been asked to fill belong to nobody until its thread has waited for it.

Source: "Parallel Thread Execution ISA" (NVIDIA), "Memory Consistency Model" and "cp.async".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.ptx.faults import PtxFault
from support.ptx.parser import Kernel
from support.ptx.warps import LANES, Warps

# Where the driver might put it: a multiple of 16, as the kernels ask for, and of no more.
_BASE = 1024 + 16
_POISON = 0xF5
_NOBODY = -1
# Actors are 64 * warp + lane, or lane 32 for all lanes of a warp at once.
ALL_LANES = LANES
_SEVERAL_WARPS = 1 << 20


class SharedMemory:
    """Hold the shared memory of all blocks of a launch.

    Args:
        kernel: whose variables lie there.
        dynamic_bytes: size of the variable whose size the launch says.
        num_blocks, num_warps: of the launch, and of a block.
    """

    def __init__(self, kernel: Kernel, dynamic_bytes: int, num_blocks: int, num_warps: int) -> None:
        self._address: dict[str, int] = {}
        size = 0
        for name, length in sorted(kernel.shared.items(), key=lambda item: item[1] is None):
            self._address[name] = _BASE + size
            size += -(-(dynamic_bytes if length is None else length) // 16) * 16
        if None not in kernel.shared.values() and dynamic_bytes:
            raise PtxFault(f"{dynamic_bytes} bytes of shared memory are asked for and not used")
        self._size = size
        total = num_blocks * size
        self._bytes = np.full(total, _POISON, np.uint8)
        self._known = np.zeros(total, bool)
        self._pending = np.zeros(total, bool)
        self._writer, self._reader = (np.full(total, _NOBODY, np.int32) for _ in range(2))
        self._written, self._read = (np.full(total, -1, np.int32) for _ in range(2))
        self._written_in_warp, self._read_in_warp = (np.full(total, -1, np.int32) for _ in range(2))
        # Barriers that each block has passed.
        self.epoch = np.zeros(num_blocks, np.int32)

    def address_of(self, name: str) -> int:
        """Return where a variable begins."""
        return self._address[name]

    def load(
        self, warps: Warps, addresses: NDArray[np.uint32], size: int, block: Any, actor: Any
    ) -> NDArray[np.uint8]:
        """Return [n,size] bytes.

        Args:
            warps: who reads.
            addresses: [n].
            size: of each access, which are multiples of it.
            block, actor: of each access, [n].

        Raises:
            PtxFault: out of bounds, not aligned, never written, or a race.
        """
        places = self._places(addresses, size, block, "read")
        if not self._known[places].all():
            raise PtxFault("shared memory is read before it is written")
        actor, epoch, in_warp = self._when(warps, block, actor)
        self._refuse_after_write(places, actor, epoch, in_warp, "read")
        last = self._reader[places]
        same_time = (self._read[places] == epoch) & (last != _NOBODY)
        same_warp = last >> 6 == actor >> 6
        several = warps.index * 2 * LANES + ALL_LANES
        again = np.where(self._read_in_warp[places] == in_warp, several, actor)
        now = np.where(last == actor, actor, np.where(same_warp, again, _SEVERAL_WARPS))
        wanted = np.where(same_time, now, actor)
        self._reader[places] = wanted
        clash = self._reader[places] != wanted
        if clash.any():  # lanes of this instruction read the same byte
            both = np.maximum(self._reader[places], wanted)[clash]
            self._reader[places[clash]] = np.maximum(both, several)
        self._read[places] = epoch
        self._read_in_warp[places] = in_warp
        return self._bytes[places]

    def store(
        self,
        warps: Warps,
        addresses: NDArray[np.uint32],
        values: NDArray[np.uint8],
        block: Any,
        actor: Any,
    ) -> None:
        """Write [n,size] bytes; arguments and faults as in `load`."""
        places = self._places(addresses, values.shape[1], block, "written")
        self._refuse_write(warps, places, values, block, actor)
        self._write(warps, places, values, block, actor)

    def begin_copy(
        self, warps: Warps, addresses: NDArray[np.uint32], size: int, block: Any, actor: Any
    ) -> NDArray[np.int64]:
        """Give bytes away to an asynchronous copy; return their places for `end_copy`."""
        places = self._places(addresses, size, block, "written")
        self._refuse_write(warps, places, None, block, actor)
        self._pending[places] = True
        self._known[places] = False
        self._bytes[places] = _POISON
        return places

    def end_copy(
        self,
        warps: Warps,
        places: NDArray[np.int64],
        values: NDArray[np.uint8],
        block: Any,
        actor: Any,
    ) -> None:
        """Let the copied bytes arrive, as if their thread wrote them now."""
        self._pending[places] = False
        self._write(warps, places, values, block, actor)

    def update(
        self, warps: Warps, address: int, size: int, block: int, actor: int
    ) -> NDArray[np.uint8]:
        """Return bytes for an atomic operation to change; atomic operations do not race."""
        places = self._places(np.array([address], np.uint32), size, np.array([block]), "updated")
        if not self._known[places].all():
            raise PtxFault("an atomic operation updates shared memory that was never written")
        when = self._when(warps, np.array([block]), np.array([actor]))
        self._refuse_after_write(places, *when, "updated")
        return self._bytes[places[0, 0] : places[0, 0] + size]

    def _places(
        self, addresses: NDArray[np.uint32], size: int, block: Any, what: str
    ) -> NDArray[np.int64]:
        at = addresses.astype(np.int64) - _BASE
        outside = (at < 0) | (at > self._size - size)
        if outside.any():
            place = int(at[np.argmax(outside)])
            raise PtxFault(
                f"{size} bytes of shared memory are {what} at byte {place} of {self._size}"
            )
        if (addresses % np.uint32(size)).any():
            raise PtxFault(f"{size} bytes are {what} at an address that is no multiple of {size}")
        places = (block * self._size + at)[:, None] + np.arange(size)
        if self._pending[places].any():
            raise PtxFault(f"what an asynchronous copy has not yet brought is {what}")
        return np.asarray(places)

    def _when(self, warps: Warps, block: Any, actor: Any) -> tuple[Any, Any, Any]:
        """Return who, and the barriers that the block and the warp have passed, as columns."""
        return actor[:, None], self.epoch[block][:, None], warps.warp_epoch[block][:, None]

    def _refuse_after_write(
        self, places: Any, actor: Any, epoch: Any, in_warp: Any, what: str, values: Any = None
    ) -> None:
        times = self._written[places] == epoch, self._written_in_warp[places] == in_warp
        raced = _raced(self._writer[places], actor, *times)
        if values is not None:  # that several write the same value harms nobody
            raced &= self._bytes[places] != values
        if raced.any():
            _refuse(self._writer[places], actor, raced, f"written is {what}")

    def _refuse_write(
        self, warps: Warps, places: Any, values: NDArray[np.uint8] | None, block: Any, actor: Any
    ) -> None:
        actor, epoch, in_warp = self._when(warps, block, actor)
        self._refuse_after_write(places, actor, epoch, in_warp, "written", values)
        times = self._read[places] == epoch, self._read_in_warp[places] == in_warp
        raced = _raced(self._reader[places], actor, *times)
        if raced.any():
            _refuse(self._reader[places], actor, raced, "read is written")

    def _write(self, warps: Warps, places: Any, values: Any, block: Any, actor: Any) -> None:
        actor, epoch, in_warp = self._when(warps, block, actor)
        self._bytes[places] = values
        if (self._bytes[places] != values).any():
            raise PtxFault("lanes of one instruction write different values to the same place")
        self._known[places] = True
        self._writer[places] = actor
        self._written[places] = epoch
        self._written_in_warp[places] = in_warp


def _raced(last: Any, actor: Any, in_epoch: Any, in_warp_epoch: Any) -> Any:
    """Return where the last access and this one are by different actors at the same time."""
    other_warp = last >> 6 != actor >> 6
    return (last != _NOBODY) & np.where(other_warp, in_epoch, (last != actor) & in_warp_epoch)


def _refuse(last: Any, actor: Any, raced: Any, what: str) -> None:
    row = int(np.argmax(raced.any(1)))
    raise PtxFault(
        f"race: a byte of shared memory that {_name(last[raced][0])} has {what} by "
        f"{_name(actor[row, 0])} with no barrier in between"
    )


def _name(actor: int) -> str:
    if actor >= _SEVERAL_WARPS:
        return "several warps"
    warp, lane = divmod(int(actor), 2 * LANES)
    return f"warp {warp}" if lane == ALL_LANES else f"lane {lane} of warp {warp}"
