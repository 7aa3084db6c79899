"""Warps: registers and state of one warp of every block, which run in step as one wide vector.

Lane l of block b is element 32 b + l of each array. Registers hold unsigned integers (or booleans,
for predicates) and are viewed as the type that an instruction names. Arrays are never changed in
place, so that registers can share them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from support.ptx.copies import Copies
from support.ptx.faults import PtxFault
from support.ptx.parser import FloatBits, Integer, Kernel, Name, Operand

if TYPE_CHECKING:
    from support.ptx.machine import Launch

LANES = 32
Array = NDArray[Any]
Read = Callable[["Warps"], Array]
Write = Callable[["Warps", Array], None]
Step = Callable[["Warps"], None]
UNSIGNED: dict[int, np.dtype[Any]] = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
# In registers that no lane or only other lanes have written: no number, and an address of nothing.
_POISON = {16: 0xFFF5, 32: 0xFFF5A5A5, 64: 0xFFF5A5A5FFF5A5A5}


class Warps:
    """Hold warp `index` of all blocks of a launch.

    Args:
        launch: that they belong to.
        index: of the warp in its block.
        coordinates: block indices as [blocks,3].
    """

    def __init__(self, launch: Launch, index: int, coordinates: Array) -> None:
        self.launch = launch
        self.index = index
        self.width = LANES * len(coordinates)
        self.lane = np.tile(np.arange(LANES, dtype=np.uint32), len(coordinates))
        self.block = np.repeat(np.arange(len(coordinates)), LANES)
        # Who reads and writes shared memory: 64 numbers a warp, of which number 32 is all lanes.
        self.actor = (index * 2 * LANES + self.lane).astype(np.int32)
        thread = self.lane + np.uint32(index * LANES)
        self.registers: dict[str, Array] = {}
        for axis, name in enumerate("xyz"):
            column = np.repeat(coordinates[:, axis].astype(np.uint32), LANES)
            self.registers[f"%ctaid.{name}"] = column
            self.registers[f"%nctaid.{name}"] = self.full(launch.grid[axis])
            self.registers[f"%tid.{name}"] = thread if axis == 0 else self.full(0)
            self.registers[f"%ntid.{name}"] = self.full(launch.threads if axis == 0 else 1)
        self.registers["%laneid"] = self.lane
        # None where all lanes run.
        self.mask: NDArray[np.bool_] | None = None
        self.at = np.zeros(self.width, np.int64)
        self.ended = np.zeros(self.width, bool)
        self.waits = np.zeros(self.width, bool)
        self.copies = Copies(self.width)
        # Barriers that this warp has passed, those of the warp alone included, by block.
        self.warp_epoch = np.zeros(len(coordinates), np.int32)

    def full(self, value: int) -> Array:
        """Return a 32-bit value for all lanes."""
        return np.full(self.width, value, np.uint32)

    def spread(self, value: Array) -> Array:
        """Return a value for each lane, where it is a constant too."""
        return value if value.ndim else np.full(self.width, value)

    def threads(self) -> NDArray[np.int64]:
        """Return a number for each lane that is unique in the launch."""
        first = self.block * np.int64(self.launch.threads) + self.index * LANES
        return np.asarray(first + self.lane, np.int64)

    def lanes(self) -> Any:
        """Return an index of the running lanes."""
        return slice(None) if self.mask is None else np.flatnonzero(self.mask)

    def whole_blocks(self, what: str) -> Array:
        """Return the blocks whose warp runs, for what only whole warps may do.

        Raises:
            PtxFault: part of a warp runs.
        """
        if self.mask is None:
            return np.arange(self.width // LANES)
        running = self.mask.reshape(-1, LANES)
        whole = running.all(1)
        if (running.any(1) != whole).any():
            raise PtxFault(f"part of warp {self.index} executes what all its lanes must", what)
        return np.flatnonzero(whole)


def dtype_of(kind: str) -> np.dtype[Any]:
    """Return NumPy's type of a PTX type; b and bf types are unsigned integers."""
    if kind == "pred":
        return np.dtype(bool)
    letter, bits = kind.rstrip("0123456789"), int(kind.lstrip("abdefprsuvx"))
    if letter in ("b", "u", "bf"):
        return UNSIGNED[bits]
    return np.dtype(f"{'i' if letter == 's' else letter}{bits // 8}")


def bits_of(kind: str) -> int:
    """Return the bits of a PTX type; a predicate has one."""
    return 1 if kind == "pred" else 8 * dtype_of(kind).itemsize


def reader(operand: Operand, kind: str | None, kernel: Kernel, may_lack: bool = False) -> Read:
    """Return what reads an operand as a type.

    Args:
        operand: to read.
        kind: its type, or None for a register's own.
        kernel: that declares it.
        may_lack: a register without a value gives poison, not a fault.

    Raises:
        PtxFault: it is of another size, or unknown.
    """
    if isinstance(operand, Integer):
        assert kind is not None
        return _constant(operand.value, dtype_of(kind))
    if isinstance(operand, FloatBits):
        kind = kind or f"b{operand.bits}"
        if bits_of(kind) != operand.bits:
            raise PtxFault(f"a constant of {operand.bits} bits is read as {kind}")
        return _constant(operand.value, dtype_of(kind))
    if not isinstance(operand, Name):
        raise PtxFault(f"{operand} is no value")
    name = operand.text
    if name in kernel.shared:
        return lambda warps: warps.full(warps.launch.shared.address_of(name))
    declared = kernel.registers.get(name, "u32" if name.startswith("%") else "")
    if not declared:
        raise PtxFault(f"{name} is not declared")
    kind = kind or declared
    if bits_of(kind) != bits_of(declared):
        raise PtxFault(f"{name} is {declared} and read as {kind}")
    dtype = dtype_of(kind)
    if may_lack:
        poison = dtype.type(_POISON[bits_of(kind)])
        return lambda warps: warps.registers.get(name, poison)
    if kind == "pred" or dtype.kind == "u":
        return lambda warps: _value(warps, name)
    return lambda warps: _value(warps, name).view(dtype)


def _value(warps: Warps, name: str) -> Array:
    try:
        return warps.registers[name]
    except KeyError:
        raise PtxFault(f"{name} is read before it is written") from None


def _constant(value: int, dtype: np.dtype[Any]) -> Read:
    if dtype.kind == "b":
        constant: Any = np.bool_(value != 0)
    else:
        unsigned = UNSIGNED[8 * dtype.itemsize]
        constant = unsigned.type(value % (1 << 8 * dtype.itemsize)).view(dtype)
    return lambda warps: constant


def writer(operand: Operand, kind: str, kernel: Kernel) -> Write:
    """Return what writes values of a type to a register in the running lanes.

    Raises:
        PtxFault: the register is of another size.
    """
    if not isinstance(operand, Name):
        raise PtxFault(f"{operand} cannot be written")
    name = operand.text
    if name == "_":
        return lambda warps, value: None
    declared = kernel.registers.get(name)
    if declared is None or bits_of(declared) != bits_of(kind):
        raise PtxFault(f"{name} is {declared} and written as {kind}")
    stored = dtype_of(declared) if declared == "pred" else UNSIGNED[bits_of(declared)]
    poison = False if declared == "pred" else _POISON[bits_of(declared)]

    def write(warps: Warps, value: Array) -> None:
        value = value.view(stored)
        value = warps.spread(value)
        if warps.mask is not None:
            old = warps.registers.get(name)
            if old is None:
                old = np.full(warps.width, poison, stored)
            value = np.where(warps.mask, value, old)
        warps.registers[name] = value

    return write


def vector(operand: Operand) -> tuple[Operand, ...]:
    """Return the operands in braces, or the one that stands alone."""
    items = getattr(operand, "items", None)
    return (operand,) if items is None else tuple(items)


def kind_in(modifiers: Iterable[str]) -> str:
    """Return the last modifier that is a type.

    Raises:
        PtxFault: there is none.
    """
    for modifier in reversed(tuple(modifiers)):
        if modifier in KINDS:
            return modifier
    raise PtxFault("the instruction names no type")


KINDS = {
    *(f"{letter}{bits}" for letter in "bus" for bits in (8, 16, 32, 64)),
    *("f16", "f32", "f64", "bf16", "f32x2", "pred"),
}
