"""Steps of floating-point numbers: what is rounded once, and what is only approximate.

Approximate functions err: each result is moved by up to what the document allows, so that nothing
which holds here depends on their last digits. How far depends on the operands and a seed alone:
like a GPU, two warps that compute the same get the same.

Source: "Parallel Thread Execution ISA" (NVIDIA), "Floating Point Instructions" and "Mixed Precision
Floating Point Instructions", with the largest errors; "Emulation of a FMA and Correctly Rounded
Sums: Proved Algorithms Using Rounding to Odd" (Boldo and Melquiond 2008) for the fused product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from support.ptx.conversions import widened
from support.ptx.faults import PtxFault
from support.ptx.integer import elementwise
from support.ptx.parser import Instruction, Kernel
from support.ptx.warps import Array, Step, Warps, reader, writer

# (function, whether its whole range is meant): largest error in units in the last place of the
# correctly rounded result, or relative to the exact one.
MOST_ULPS = {"ex2.approx": 2, "div.full": 2, "div.approx": 2, "rcp.approx": 1}
MOST_RELATIVE = {"rsqrt.approx": 2**-22.9, "sqrt.approx": 2**-23}
_PRODUCT_SPLITTER = np.float64(2**27 + 1)


def _fused(a: Array, b: Array, c: Array) -> Any:
    """Return a * b + c, rounded once in fp32 and to within a unit of the last place in fp64."""
    if a.dtype == np.float64:
        return _fused_double(a, b, c)
    product = a.astype(np.float64) * b.astype(np.float64)  # exact
    total, rest = _sum_and_rest(product, c.astype(np.float64))
    # Rounding to odd: the digits that were cut off stay visible in the last one.
    bits = total.view(np.int64)
    away = np.where((rest > 0) == (total > 0), 1, -1)
    odd = (bits + np.where((rest != 0) & (bits & 1 == 0), away, 0)).view(np.float64)
    return np.where(np.isfinite(total), odd, total).astype(np.float32)


def _fused_double(a: Array, b: Array, c: Array) -> Any:
    product = a * b
    parts = []
    for factor in (a, b):
        high = factor * _PRODUCT_SPLITTER
        high = high - (high - factor)
        parts.append((high, factor - high))
    (ah, al), (bh, bl) = parts
    lost = ((ah * bh - product) + ah * bl + al * bh) + al * bl
    total, rest = _sum_and_rest(product, c)
    exact = total + (rest + lost)
    return np.where(np.isfinite(exact), exact, product + c)


def _sum_and_rest(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and what rounding took off; source: Knuth's TwoSum."""
    total = np.asarray(a + b)
    part = total - a
    return total, np.asarray((a - (total - part)) + (b - part))


def _largest(a: Array, b: Array, *more: Array) -> Any:
    largest = np.where(a == b, np.where(np.signbit(a), b, a), np.fmax(a, b))
    return _largest(largest, *more) if more else largest


def _least(a: Array, b: Array, *more: Array) -> Any:
    least = np.where(a == b, np.where(np.signbit(a), a, b), np.fmin(a, b))
    return _least(least, *more) if more else least


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "fma": _fused,
    "max": _largest,
    "min": _least,
    "neg": np.negative,
    "abs": np.abs,
    "div": np.divide,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
}
_NEEDS_ROUNDING = {"fma", "div", "sqrt", "rcp"}


def arithmetic(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of a function that is rounded to nearest, of one type or of pairs."""
    modifiers = list(instruction.modifiers)
    kind = modifiers.pop()
    function = _FUNCTIONS[instruction.opcode]
    flushes = "ftz" in modifiers
    modifiers = [m for m in modifiers if m != "ftz"]
    if modifiers == ["rn"] or not (modifiers or instruction.opcode in _NEEDS_ROUNDING):
        if kind == "f32x2" and not flushes:
            return _pairs(instruction, kernel, function)
        if kind in ("f32", "f64"):
            flushed = _flushing(function) if flushes else function
            return elementwise(instruction, kernel, kind, flushed)
    if modifiers == ["rn", "f32"] and kind in ("f16", "bf16") and len(instruction.operands) == 3:
        return _mixed(instruction, kernel, function, kind)
    raise PtxFault("unknown instruction")


def _pairs(instruction: Instruction, kernel: Kernel, function: Callable[..., Any]) -> Step:
    """Return the step on two fp32 numbers in each 64-bit register."""

    def both(*operands: Array) -> Any:
        halves = (np.ascontiguousarray(operand).view(np.float32) for operand in operands)
        return np.ascontiguousarray(function(*halves)).view(np.uint64)

    return elementwise(instruction, kernel, "b64", both)


def _mixed(
    instruction: Instruction, kernel: Kernel, function: Callable[..., Any], kind: str
) -> Step:
    """Return the step on a 16-bit and an fp32 number."""
    put = writer(instruction.operands[0], "f32", kernel)
    narrow = reader(instruction.operands[1], "b16", kernel)
    wide = reader(instruction.operands[2], "f32", kernel)
    return lambda warps: put(warps, function(widened(narrow(warps), kind), wide(warps)))


def _flush(value: Array) -> Any:
    """Return zeros of their sign for numbers below the smallest normal one."""
    tiny = np.abs(value) < np.finfo(value.dtype).tiny
    return np.where(tiny, np.copysign(value.dtype.type(0), value), value)


def _flushing(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *operands: _flush(function(*(_flush(operand) for operand in operands)))


_EXACT: dict[str, Callable[..., Any]] = {
    "ex2.approx": np.exp2,
    "div.full": np.divide,
    "div.approx": np.divide,
    "rcp.approx": np.reciprocal,
    "sqrt.approx": np.sqrt,
    "rsqrt.approx": lambda a: 1 / np.sqrt(a),
}


def approximate(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of an approximate function of fp32 numbers."""
    modifiers = [m for m in instruction.modifiers if m != "ftz"]
    name = ".".join((instruction.opcode, *modifiers[:-1]))
    flushes = len(modifiers) != len(instruction.modifiers)
    if name not in _EXACT or modifiers[-1] != "f32":
        raise PtxFault("unknown instruction")
    function = _EXACT[name]
    put = writer(instruction.operands[0], "f32", kernel)
    sources = [reader(operand, "f32", kernel) for operand in instruction.operands[1:]]

    def step(warps: Warps) -> None:
        operands = [source(warps) for source in sources]
        if flushes:
            operands = [_flush(operand) for operand in operands]
        exact = function(*(operand.astype(np.float64) for operand in operands))
        value = _erring(name, np.asarray(exact), _noise(operands, warps.launch.seed))
        if name == "ex2.approx":  # the document has a table of exact results
            value = np.where(operands[0] == 0, np.float32(1), value)
        elif name == "div.approx":  # it multiplies by a reciprocal, which vanishes here
            divisor = np.abs(operands[1])
            gone = (divisor > np.float32(2.0**126)) & np.isfinite(divisor)
            none = np.copysign(np.float32(0), value)
            value = np.where(gone, np.where(np.isinf(operands[0]), np.float32(np.nan), none), value)
        put(warps, _flush(value) if flushes else value)

    return step


def _noise(operands: list[Array], seed: int) -> Any:
    """Return numbers of -1 to 1 that depend on the operands' bits and a seed."""
    mixed: Any = np.uint32(seed * 0x9E3779B1 & 0xFFFFFFFF)
    for operand in operands:
        mixed = (mixed ^ operand.view(np.uint32)) * np.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> np.uint32(13))) * np.uint32(0xC2B2AE35)
        mixed = mixed ^ (mixed >> np.uint32(16))
    return mixed / (2**31 - 0.5) - 1


def _erring(name: str, exact: Array, noise: Array) -> Any:
    """Return fp32 values that err by as much as the function may; none of zero or infinity does."""
    if name in MOST_RELATIVE:
        return (exact * (1 + noise * MOST_RELATIVE[name])).astype(np.float32)
    rounded = exact.astype(np.float32)
    steps = np.rint(noise * (MOST_ULPS[name] + 0.49)).astype(np.int32)
    moved = (rounded.view(np.int32) + steps).view(np.float32)
    size = np.abs(rounded)
    moves = np.isfinite(rounded) & np.isfinite(moved) & (size > np.finfo(np.float32).tiny * 2)
    return np.where(moves, moved, rounded)
