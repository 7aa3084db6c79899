"""Steps of integers, bits and predicates: arithmetic, shifts, comparisons and selections.

Source: "Parallel Thread Execution ISA" (NVIDIA), "Integer Arithmetic Instructions", "Comparison and
Selection Instructions", "Logic and Shift Instructions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from support.ptx.faults import PtxFault
from support.ptx.parser import FloatBits, Instruction, Integer, Kernel, Name
from support.ptx.warps import Array, Step, Warps, bits_of, dtype_of, kind_in, reader, writer

_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_COMPARE: dict[str, Callable[[Array, Array], Any]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a != b) & (a == a) & (b == b),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    # Unordered: true where one is not a number.
    "neu": np.not_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: (a == a) & (b == b),
    "nan": lambda a, b: (a != a) | (b != b),
}
_LOGIC: dict[str, Callable[[Array, Array], Any]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def elementwise(
    instruction: Instruction, kernel: Kernel, kind: str, function: Callable[..., Any]
) -> Step:
    """Return the step that writes a function of operands, all of one type."""
    put = writer(instruction.operands[0], kind, kernel)
    sources = [reader(operand, kind, kernel) for operand in instruction.operands[1:]]
    if len(sources) == 1:
        (one,) = sources
        return lambda warps: put(warps, function(one(warps)))
    if len(sources) == 2:
        first, second = sources
        return lambda warps: put(warps, function(first(warps), second(warps)))
    return lambda warps: put(warps, function(*(source(warps) for source in sources)))


def simple(function: Callable[..., Any]) -> Callable[[Instruction, Kernel], Step]:
    """Return the decoder of an instruction that has a type and no other modifier."""

    def decode(instruction: Instruction, kernel: Kernel) -> Step:
        if len(instruction.modifiers) != 1:
            raise PtxFault("unknown instruction")
        return elementwise(instruction, kernel, instruction.modifiers[0], function)

    return decode


def logic(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `and`, `or`, `xor`, `not`."""
    function = np.invert if instruction.opcode == "not" else _LOGIC[instruction.opcode]
    return simple(function)(instruction, kernel)


def multiply(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `mul` and `mad` of integers, with .lo, .hi or .wide."""
    part, kind = instruction.modifiers
    result = _WIDE[kind] if part == "wide" else kind
    put = writer(instruction.operands[0], result, kernel)
    a, b = (reader(operand, kind, kernel) for operand in instruction.operands[1:3])
    adds = instruction.opcode == "mad"
    c = reader(instruction.operands[3], result, kernel) if adds else None
    wide = dtype_of(_WIDE.get(kind, kind))
    narrow = dtype_of(kind)
    if part not in ("lo", "hi", "wide") or (part == "hi" and kind not in _WIDE):
        raise PtxFault("unknown instruction")

    def product(warps: Warps) -> Any:
        if part == "lo":
            return a(warps) * b(warps)
        whole = a(warps).astype(wide) * b(warps).astype(wide)
        return (whole >> bits_of(kind)).astype(narrow) if part == "hi" else whole

    if c is None:
        return lambda warps: put(warps, product(warps))
    addend = c
    return lambda warps: put(warps, product(warps) + addend(warps))


def divide(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `div` and `rem` of integers; the quotient is rounded towards zero."""
    is_quotient = instruction.opcode == "div"

    def function(a: Array, b: Array) -> Any:
        # What a division by zero gives is not specified: all ones here.
        nonzero = np.where(b == 0, b.dtype.type(1), b)
        rest = np.fmod(a, nonzero)
        result = (a - rest) // nonzero if is_quotient else rest
        return np.where(b == 0, np.invert(np.zeros_like(b)), result)

    return simple(function)(instruction, kernel)


def shift(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `shl` and `shr`: shifts by more than the size leave nothing."""
    (kind,) = instruction.modifiers
    put = writer(instruction.operands[0], kind, kernel)
    value = reader(instruction.operands[1], kind, kernel)
    count = reader(instruction.operands[2], "u32", kernel)
    bits, left = bits_of(kind), instruction.opcode == "shl"
    is_signed = kind.startswith("s") and not left

    def step(warps: Warps) -> None:
        number, distance = value(warps), count(warps)
        inside = np.minimum(distance, bits - 1).astype(number.dtype)
        moved = np.left_shift(number, inside) if left else np.right_shift(number, inside)
        if not is_signed:
            moved = np.where(distance >= bits, number.dtype.type(0), moved)
        put(warps, moved)

    return step


def extract(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `bfe`: a field of bits, signed ones filled up with their highest bit."""
    (kind,) = instruction.modifiers
    put = writer(instruction.operands[0], kind, kernel)
    value = reader(instruction.operands[1], kind, kernel)
    start, length = (reader(operand, "u32", kernel) for operand in instruction.operands[2:4])
    bits, dtype = bits_of(kind), dtype_of(kind)

    def step(warps: Warps) -> None:
        first = np.minimum(start(warps) & 255, bits - 1).astype(np.int64)
        count = np.minimum((length(warps) & 255).astype(np.int64), bits - first)
        number = value(warps)
        # Both shifts are by less than the size: an empty field is dealt with apart.
        left = np.minimum(bits - first - count, bits - 1).astype(dtype)
        right = np.minimum(bits - count, bits - 1).astype(dtype)
        field = np.right_shift(np.left_shift(number, left), right)
        put(warps, np.where(count == 0, dtype.type(0), field))

    return step


def compare(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `setp`, with another predicate combined where there is one."""
    *names, kind = (m for m in instruction.modifiers if m != "ftz")
    put = writer(instruction.operands[0], "pred", kernel)
    a, b = (reader(operand, kind, kernel) for operand in instruction.operands[1:3])
    if names[0] not in _COMPARE or len(names) > 2 or len(names) != len(instruction.operands) - 2:
        raise PtxFault("unknown instruction")
    function = _COMPARE[names[0]]
    if len(names) == 1:
        return lambda warps: put(warps, np.asarray(function(a(warps), b(warps))))
    combine, other = _LOGIC[names[1]], instruction.operands[3]
    third = reader(other, "pred", kernel)
    flip = isinstance(other, Name) and other.negated
    return lambda warps: put(
        warps, np.asarray(combine(function(a(warps), b(warps)), third(warps) ^ flip))
    )


def select(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `selp`."""
    (kind,) = instruction.modifiers
    put = writer(instruction.operands[0], kind, kernel)
    a, b = (reader(operand, kind, kernel) for operand in instruction.operands[1:3])
    condition = reader(instruction.operands[3], "pred", kernel)
    constant = [isinstance(o, (FloatBits, Integer)) for o in instruction.operands[1:3]]
    is_mask = constant in ([True, False], [False, True])

    def step(warps: Warps) -> None:
        chosen = condition(warps)
        if is_mask and (chosen == constant[0])[warps.lanes()].any():
            warps.launch.masked.add(instruction.line)
        put(warps, np.where(chosen, a(warps), b(warps)))

    return step


def least(a: Array, b: Array) -> Any:
    """Return the smaller one."""
    return np.minimum(a, b)


def largest(a: Array, b: Array) -> Any:
    """Return the larger one."""
    return np.maximum(a, b)


def is_integer(instruction: Instruction) -> bool:
    """Return whether an instruction's type is one of integers."""
    return kind_in(instruction.modifiers)[0] in "us"
