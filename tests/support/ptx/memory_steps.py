"""Steps of loads, stores, asynchronous copies and atomic operations.

Source: "Parallel Thread Execution ISA" (NVIDIA), "Data Movement and Conversion Instructions" and
"Parallel Synchronization and Communication Instructions".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.ptx.faults import PtxFault
from support.ptx.parser import Address, Instruction, Integer, Kernel, Name, Operand
from support.ptx.warps import (
    UNSIGNED,
    Read,
    Step,
    Warps,
    bits_of,
    dtype_of,
    kind_in,
    reader,
    vector,
    writer,
)

_SPACES = {"global": 64, "shared": 32, "shared::cta": 32, "param": 0}
# What says how a cache should behave, or in which order others see an access. The interpreter has
# one memory that everybody sees at once.
_HINTS = {
    *("weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "cta", "gpu", "sys", "nc"),
    *("ca", "cg", "cs", "lu", "cv", "wb", "wt", "L1::evict_last", "L1::evict_first"),
    *("L1::no_allocate", "L2::64B", "L2::128B", "L2::256B", "noftz"),
}


def load(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `ld`."""
    space, kind = _access(instruction)
    targets = vector(instruction.operands[0])
    put = [writer(target, _register_kind(target, kernel), kernel) for target in targets]
    size = len(targets) * bits_of(kind) // 8
    stored = dtype_of(kind) if kind.startswith("s") else UNSIGNED[bits_of(kind)]
    kept = [dtype_of(_register_kind(target, kernel)) for target in targets]
    extended = [_extended(kind, dtype) for dtype in kept]
    if space == "param":
        start = _parameter(instruction.operands[1], kernel, size)

        def step_from_parameters(warps: Warps) -> None:
            raw = warps.launch.parameters[start : start + size].view(stored)
            for value, wide, write in zip(raw, extended, put, strict=True):
                write(warps, np.asarray(value).astype(wide))

        return step_from_parameters
    address = address_reader(instruction.operands[1], space, kernel)

    def step(warps: Warps) -> None:
        lanes = warps.lanes()
        at = address(warps)[lanes]
        if space == "global":
            raw = warps.launch.memory.load(at, size)
        else:
            raw = warps.launch.shared.load(warps, at, size, warps.block[lanes], warps.actor[lanes])
        columns = raw.view(stored)
        for i, (wide, write) in enumerate(zip(extended, put, strict=True)):
            value = np.zeros(warps.width, wide)
            value[lanes] = columns[:, i]
            write(warps, value)

    return step


def store(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `st`."""
    space, kind = _access(instruction)
    if space == "param":
        raise PtxFault("parameters cannot be written")
    address = address_reader(instruction.operands[0], space, kernel)
    sources = vector(instruction.operands[1])
    stored = UNSIGNED[bits_of(kind)]
    read: list[Read] = [
        reader(source, kind if not isinstance(source, Name) else None, kernel) for source in sources
    ]

    def step(warps: Warps) -> None:
        lanes = warps.lanes()
        at = address(warps)[lanes]
        columns = np.empty((len(at), len(read)), stored)
        for i, value in enumerate(read):
            # A register may be wider than what is stored of it.
            column = value(warps)
            whole = column.view(UNSIGNED[8 * column.itemsize]).astype(stored)
            columns[:, i] = whole[lanes] if whole.ndim else whole
        raw = columns.view(np.uint8)
        if space == "global":
            warps.launch.memory.store(at, raw, warps.threads()[lanes])
        else:
            block, actor = warps.block[lanes], warps.actor[lanes]
            warps.launch.shared.store(warps, at, raw, block, actor)

    return step


def copy_async(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `cp.async` with copies, commits and waits of groups."""
    modifiers = [m for m in instruction.modifiers if m not in _HINTS]
    if modifiers == ["async", "commit_group"]:
        return lambda warps: warps.copies.commit(warps)
    if modifiers in (["async", "wait_group"], ["async", "wait_all"]):
        left = instruction.operands[0] if instruction.operands else Integer(0)
        assert isinstance(left, Integer)
        everything, count = modifiers[1] == "wait_all", left.value
        return lambda warps: warps.copies.wait(warps, count, everything)
    if modifiers != ["async", "shared", "global"] or not 3 <= len(instruction.operands) <= 4:
        raise PtxFault("unknown instruction")
    to, source, size_operand, *rest = instruction.operands
    assert isinstance(size_operand, Integer)
    size = size_operand.value
    target = address_reader(to, "shared", kernel)
    origin = address_reader(source, "global", kernel)
    count_of = reader(rest[0], "u32", kernel) if rest else None

    def step(warps: Warps) -> None:
        lanes = warps.lanes()
        counts = np.full(warps.width, size) if count_of is None else count_of(warps)
        counts = warps.spread(np.asarray(counts))[lanes]
        if (counts > size).any():
            raise PtxFault(f"more than {size} bytes are copied")
        if (counts < size).any():
            warps.launch.masked.add(instruction.line)
        addresses = origin(warps)[lanes]
        values = np.zeros((len(addresses), size), np.uint8)
        for count in np.unique(counts[counts > 0]):
            rows = counts == count
            values[rows, :count] = warps.launch.memory.load(addresses[rows], int(count))
        warps.copies.begin(warps, target(warps)[lanes], values, lanes)

    return step


def atomic(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `atom` and of `red`, which returns nothing; lanes act in random order."""
    modifiers = [m for m in instruction.modifiers if m not in _HINTS]
    if len(modifiers) != 3 or modifiers[0] not in ("global", "shared"):
        raise PtxFault("unknown instruction")
    space, name, kind = modifiers
    change = _CHANGES.get(name)
    if change is None:
        raise PtxFault("unknown instruction")
    returns = instruction.opcode == "atom"
    operands = list(instruction.operands)
    put = writer(operands.pop(0), kind, kernel) if returns else None
    address = address_reader(operands.pop(0), space, kernel)
    values = [reader(operand, kind, kernel) for operand in operands]
    dtype = dtype_of(kind)

    def step(warps: Warps) -> None:
        at, old = address(warps), np.zeros(warps.width, dtype)
        arguments = [warps.spread(value(warps)) for value in values]
        for lane in warps.launch.random.permutation(np.arange(warps.width)[warps.lanes()]):
            if space == "global":
                raw = warps.launch.memory.update(int(at[lane]), dtype.itemsize)
            else:
                raw = warps.launch.shared.update(
                    warps, int(at[lane]), dtype.itemsize, warps.block[lane], warps.actor[lane]
                )
            old[lane] = raw.view(dtype)[0]
            changed = change(old[lane], *(argument[lane] for argument in arguments))
            raw[:] = np.array([changed], dtype).view(np.uint8)
        if put is not None:
            put(warps, old)

    return step


_CHANGES: dict[str, Any] = {
    "add": lambda old, value: old + value,
    "min": min,
    "max": max,
    "and": lambda old, value: old & value,
    "or": lambda old, value: old | value,
    "exch": lambda old, value: value,
    "cas": lambda old, compared, value: value if old == compared else old,
}


def _access(instruction: Instruction) -> tuple[str, str]:
    """Return space and type of a load or store."""
    rest = [m for m in instruction.modifiers if m not in _HINTS and m not in ("v2", "v4", "v8")]
    if len(rest) != 2 or rest[0] not in _SPACES:
        raise PtxFault("unknown instruction")
    return rest[0].removesuffix("::cta"), kind_in(rest)


def _register_kind(operand: Operand, kernel: Kernel) -> str:
    assert isinstance(operand, Name)
    kind = kernel.registers.get(operand.text)
    if kind is None:
        raise PtxFault(f"{operand.text} is not declared")
    return kind


def _extended(kind: str, kept: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type in which a value of a narrower one fills a register."""
    if kept.itemsize < dtype_of(kind).itemsize:
        raise PtxFault(f"a register of {8 * kept.itemsize} bits cannot hold {kind}")
    return np.dtype(f"i{kept.itemsize}") if kind.startswith("s") else UNSIGNED[8 * kept.itemsize]


def _parameter(operand: Operand, kernel: Kernel, size: int) -> int:
    """Return where a parameter's bytes begin among those of all."""
    assert isinstance(operand, Address) and isinstance(operand.base, Name)
    start = 0
    for name, length in kernel.parameters:
        if name == operand.base.text:
            if not 0 <= operand.offset <= length - size:
                raise PtxFault(f"{size} bytes at {operand.offset} of a parameter of {length}")
            return start + operand.offset
        start += length
    raise PtxFault(f"there is no parameter {operand.base.text}")


def address_reader(operand: Operand, space: str, kernel: Kernel) -> Read:
    """Return what computes addresses, [lanes], of 64 or, in shared memory, 32 bits."""
    if not isinstance(operand, Address):
        raise PtxFault(f"{operand} is no address")
    kind = "u64" if space == "global" else "u32"
    base = reader(operand.base, kind, kernel)
    offset = dtype_of(kind).type(operand.offset % (1 << bits_of(kind)))

    def address(warps: Warps) -> NDArray[Any]:
        return warps.spread(base(warps) + offset)

    return address if operand.offset else lambda warps: warps.spread(base(warps))
