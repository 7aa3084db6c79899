"""Steps that move and convert: registers, halves of registers, number types, addresses.

Source: "Parallel Thread Execution ISA" (NVIDIA), "Data Movement and Conversion Instructions".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from support.ptx.faults import PtxFault
from support.ptx.parser import Instruction, Kernel, Name, Vector
from support.ptx.warps import (
    UNSIGNED,
    Array,
    Step,
    Warps,
    bits_of,
    dtype_of,
    reader,
    writer,
)


def widened(bits: Array, kind: str) -> Any:
    """Return 16-bit numbers, given by their bits, as fp32."""
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(np.float16).astype(np.float32)


def narrowed(value: Array, kind: str) -> Any:
    """Return the bits of fp32 numbers rounded to 16 bits, to the nearest, ties to even."""
    if kind == "f16":
        return value.astype(np.float16).view(np.uint16)
    bits = value.view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    half = (rounded >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), half)


def move(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `mov`: of a register, or of the parts that make one up."""
    (kind,) = instruction.modifiers
    target, source = instruction.operands
    if isinstance(source, Vector):
        return _pack(target, source, kind, kernel)
    if isinstance(target, Vector):
        return _unpack(target, source, kind, kernel)
    put, read = writer(target, kind, kernel), reader(source, kind, kernel)
    return lambda warps: put(warps, read(warps))


def _pack(target: Any, source: Vector, kind: str, kernel: Kernel) -> Step:
    put, whole = writer(target, kind, kernel), UNSIGNED[bits_of(kind)]
    part = f"b{bits_of(kind) // len(source.items)}"
    # A part may be without a value where only the others are used.
    reads = [reader(item, part, kernel, may_lack=True) for item in source.items]
    distance = bits_of(part)

    def step(warps: Warps) -> None:
        value = reads[0](warps).astype(whole)
        for i, read in enumerate(reads[1:], 1):
            value = value | (read(warps).astype(whole) << whole.type(i * distance))
        put(warps, value)

    return step


def _unpack(target: Vector, source: Any, kind: str, kernel: Kernel) -> Step:
    read, whole = reader(source, kind, kernel), UNSIGNED[bits_of(kind)]
    part = f"b{bits_of(kind) // len(target.items)}"
    puts = [writer(item, part, kernel) for item in target.items]
    narrow, distance = dtype_of(part), bits_of(part)

    def step(warps: Warps) -> None:
        value = read(warps).view(whole)
        for i, put in enumerate(puts):
            put(warps, (value >> whole.type(i * distance)).astype(narrow))

    return step


def convert(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `cvt`."""
    *how, to, origin = instruction.modifiers
    if to in ("f16x2", "bf16x2") and (how, origin) == (["rn"], "f32"):
        return _convert_pair(instruction, kernel, to.removesuffix("x2"))
    function = _conversion(tuple(how), to, origin)
    put = writer(instruction.operands[0], to, kernel)
    read = reader(instruction.operands[1], origin.replace("bf", "b"), kernel)
    return lambda warps: put(warps, function(read(warps)))


def _conversion(how: tuple[str, ...], to: str, origin: str) -> Callable[[Array], Any]:
    target = dtype_of(to)
    halves = ("f16", "bf16")
    if to[0] in "us" and origin[0] in "us" and not how:
        return lambda value: value.astype(target)
    if to == "f32" and origin in halves and not how:
        return lambda value: widened(value.view(np.uint16), origin)
    if to in halves and origin == "f32" and how == ("rn",):
        return lambda value: narrowed(value, to)
    if to[0] == "f" and to not in halves and origin[0] in "us" and how == ("rn",):
        return lambda value: value.astype(target)
    if (how, to, origin) in (((), "f64", "f32"), (("rn",), "f32", "f64")):
        return lambda value: value.astype(target)
    if to == origin and to in ("f32", "f64") and how == ("rni",):
        return np.rint
    if to[0] in "us" and origin in ("f32", "f64") and how in (("rzi",), ("rni",)):
        return lambda value: _to_integer(value, target, np.trunc if how == ("rzi",) else np.rint)
    raise PtxFault("unknown instruction")


def _to_integer(value: Array, target: np.dtype[Any], rounded: Callable[..., Any]) -> Any:
    """Return integers, the nearest that there is for what is too large, and 0 for no number."""
    limits = np.iinfo(target)
    whole = rounded(value.astype(np.float64))
    high, low = whole >= float(limits.max), whole <= float(limits.min)
    inside = np.where(high | low | np.isnan(whole), 0, whole).astype(target)
    return np.where(high, limits.max, np.where(low, limits.min, inside)).astype(target)


def _convert_pair(instruction: Instruction, kernel: Kernel, kind: str) -> Step:
    """Return the step that rounds two fp32 numbers; the first one becomes the upper half."""
    put = writer(instruction.operands[0], "b32", kernel)
    high, low = (reader(operand, "f32", kernel) for operand in instruction.operands[1:])

    def step(warps: Warps) -> None:
        upper = narrowed(high(warps), kind).astype(np.uint32) << np.uint32(16)
        put(warps, upper | narrowed(low(warps), kind))

    return step


def convert_address(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `cvta`: here, global addresses are generic ones."""
    if instruction.modifiers not in (("to", "global", "u64"), ("global", "u64")):
        raise PtxFault("unknown instruction")
    put = writer(instruction.operands[0], "u64", kernel)
    assert isinstance(instruction.operands[1], Name)
    read = reader(instruction.operands[1], "u64", kernel)
    return lambda warps: put(warps, read(warps))
