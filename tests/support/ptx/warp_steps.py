"""Steps of whole warps: shuffles, matrices between registers and shared memory, their products.

Source: "Parallel Thread Execution ISA" (NVIDIA), "shfl.sync", "Matrix Fragments for mma.m16n8k16",
"ldmatrix" and "stmatrix".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from support.ptx.conversions import widened
from support.ptx.faults import PtxFault
from support.ptx.memory_steps import address_reader
from support.ptx.parser import Instruction, Kernel
from support.ptx.shared_memory import ALL_LANES
from support.ptx.warps import LANES, Array, Read, Step, Warps, Write, reader, vector, writer

_LANE = np.arange(LANES)
_GROUP, _IN_GROUP = _LANE // 4, _LANE % 4
# Bytes of a row of an 8x8 matrix of 16-bit numbers.
_ROW_BYTES = 16
_ALL = np.uint32(0xFFFFFFFF)


def shuffle(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `shfl.sync`."""
    if instruction.modifiers[0] != "sync" or instruction.modifiers[2] != "b32":
        raise PtxFault("unknown instruction")
    mode, operands = instruction.modifiers[1], instruction.operands
    put = writer(operands[0], "b32", kernel)
    value, distance, limits, members = (reader(o, "u32", kernel) for o in operands[1:])
    if mode not in ("bfly", "idx", "up", "down"):
        raise PtxFault("unknown instruction")

    def step(warps: Warps) -> None:
        _require_members(warps, members, instruction.text)
        lane, limit = warps.lane.astype(np.int64), limits(warps).astype(np.int64)
        segment, clamp = (limit >> 8) & 31, limit & 31
        most = (lane & segment) | (clamp & ~segment)
        by = distance(warps).astype(np.int64) & 31
        source = {
            "bfly": lane ^ by,
            "idx": (lane & segment) | (by & ~segment),
            "up": lane - by,
            "down": lane + by,
        }[mode]
        inside = source >= most if mode == "up" else source <= most
        given = warps.spread(value(warps))
        put(warps, given[warps.block * LANES + np.where(inside, source, lane)])

    return step


def _require_members(warps: Warps, members: Read, what: str) -> None:
    """Refuse what waits for lanes that are elsewhere."""
    warps.whole_blocks(what)
    if (warps.spread(members(warps))[warps.lanes()] != _ALL).any():
        raise PtxFault("only whole warps are supported", what)


def synchronise(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `bar.warp.sync`."""
    if instruction.modifiers != ("warp", "sync"):
        raise PtxFault("unknown instruction")
    members = reader(instruction.operands[0], "u32", kernel)

    def step(warps: Warps) -> None:
        _require_members(warps, members, instruction.text)
        warps.warp_epoch[warps.whole_blocks(instruction.text)] += 1

    return step


def load_matrices(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `ldmatrix`: 1, 2 or 4 matrices of 8x8 16-bit numbers."""
    count, transposed = _matrices(instruction)
    puts = [writer(target, "b32", kernel) for target in vector(instruction.operands[0])]
    _require_count(len(puts), count)
    address = address_reader(instruction.operands[1], "shared", kernel)

    def step(warps: Warps) -> None:
        blocks, rows = _rows(warps, address, count, instruction.text)
        where = np.repeat(blocks, 8 * count)
        actor = np.full(len(where), warps.index * 2 * LANES + ALL_LANES, np.int32)
        raw = warps.launch.shared.load(warps, rows, _ROW_BYTES, where, actor)
        matrices = raw.view(np.uint16).reshape(len(blocks), count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        fragments = np.ascontiguousarray(matrices).view(np.uint32).reshape(len(blocks), count, 32)
        for i, put in enumerate(puts):
            value = np.zeros((warps.width // LANES, LANES), np.uint32)
            value[blocks] = fragments[:, i]
            put(warps, value.reshape(-1))

    return step


def store_matrices(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `stmatrix`."""
    count, transposed = _matrices(instruction)
    reads = [reader(source, "b32", kernel) for source in vector(instruction.operands[1])]
    _require_count(len(reads), count)
    address = address_reader(instruction.operands[0], "shared", kernel)

    def step(warps: Warps) -> None:
        blocks, rows = _rows(warps, address, count, instruction.text)
        columns = [warps.spread(read(warps)) for read in reads]
        fragments = np.stack([c.reshape(-1, LANES)[blocks] for c in columns], axis=1)
        matrices = np.ascontiguousarray(fragments).view(np.uint16).reshape(-1, count, 8, 8)
        if transposed:
            matrices = matrices.swapaxes(2, 3)
        raw = np.ascontiguousarray(matrices).view(np.uint8).reshape(-1, _ROW_BYTES)
        where = np.repeat(blocks, 8 * count)
        actor = np.full(len(where), warps.index * 2 * LANES + ALL_LANES, np.int32)
        warps.launch.shared.store(warps, rows, raw, where, actor)

    return step


def _matrices(instruction: Instruction) -> tuple[int, bool]:
    modifiers = [m.removesuffix("::cta") for m in instruction.modifiers]
    transposed = "trans" in modifiers
    rest = [m for m in modifiers if m != "trans"]
    counts = {"x1": 1, "x2": 2, "x4": 4}
    expected = ["sync", "aligned", "m8n8", "shared", "b16"]
    if [m for m in rest if m not in counts] != expected or len(rest) != 6:
        raise PtxFault("unknown instruction")
    return next(counts[m] for m in rest if m in counts), transposed


def _require_count(found: int, count: int) -> None:
    if found != count:
        raise PtxFault(f"{found} registers for {count} matrices")


def _rows(warps: Warps, address: Read, count: int, what: str) -> tuple[Array, Array]:
    """Return the blocks whose warp runs, and the addresses of rows that its first lanes give."""
    blocks = warps.whole_blocks(what)
    return blocks, address(warps).reshape(-1, LANES)[blocks, : 8 * count].reshape(-1)


def multiply_matrices(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the step of `mma.sync` of 16x16 and 16x8 numbers of 16 bits, with fp32 sums.

    Sums are exact here until they are cut to fp32: tensor cores do not round, and in which order
    they add up is not said.
    """
    for kind in ("f16", "bf16"):
        expected = ("sync", "aligned", "m16n8k16", "row", "col", "f32", kind, kind, "f32")
        if instruction.modifiers == expected:
            break
    else:
        raise PtxFault("unknown instruction")
    out, *inputs = (vector(operand) for operand in instruction.operands)
    puts = [writer(target, "f32", kernel) for target in out]
    a, b = ([reader(o, "b32", kernel) for o in operands] for operands in inputs[:2])
    c = [reader(o, "f32", kernel) for o in inputs[2]]
    if (len(puts), len(a), len(b), len(c)) != (4, 4, 2, 4):
        raise PtxFault("unknown instruction")

    def step(warps: Warps) -> None:
        warps.whole_blocks(instruction.text)
        A = _gathered(warps, a, kind, (16, 16), _A_PLACES)
        B = _gathered(warps, b, kind, (8, 16), _B_PLACES)
        sums = [warps.spread(read(warps)).astype(np.float64) for read in c]
        products = A @ B.swapaxes(1, 2)
        _scatter(warps, puts, products, sums)

    return step


def _places(halves: tuple[tuple[int, int], ...]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return row and column of both numbers of each register as [registers,lanes,2]."""
    rows = np.stack([np.stack([_GROUP + row] * 2, 1) for row, _ in halves])
    pair = np.stack([2 * _IN_GROUP, 2 * _IN_GROUP + 1], 1)
    return rows, np.stack([pair + column for _, column in halves])


_A_PLACES = _places(((0, 0), (8, 0), (0, 8), (8, 8)))
_B_PLACES = _places(((0, 0), (0, 8)))  # of B transposed
_C_PLACES = _places(((0, 0), (8, 0)))


def _gathered(
    warps: Warps,
    reads: list[Read],
    kind: str,
    shape: tuple[int, int],
    places: tuple[NDArray[Any], NDArray[Any]],
) -> NDArray[np.float64]:
    """Return the matrix of each block's warp whose numbers lie in pairs in registers."""
    columns = [warps.spread(read(warps)) for read in reads]
    pairs = np.ascontiguousarray(np.stack(columns)).view(np.uint16)
    numbers = widened(pairs, kind).reshape(len(reads), -1, LANES, 2)
    matrix = np.empty((warps.width // LANES, *shape))
    matrix[:, places[0], places[1]] = numbers.swapaxes(0, 1)
    return matrix


def _scatter(
    warps: Warps, puts: list[Write], products: NDArray[np.float64], sums: list[Array]
) -> None:
    rows, columns = _C_PLACES
    fragments = products[:, rows, columns]  # [blocks,2,lanes,2]
    for i, put in enumerate(puts):
        part = fragments[:, i // 2, :, i % 2].reshape(-1)
        put(warps, _cut(part + sums[i]))


def _cut(exact: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return fp32 numbers, rounded towards zero."""
    rounded = exact.astype(np.float32)
    back = (np.abs(rounded) > np.abs(exact)) & np.isfinite(exact)
    return np.asarray(np.where(back, (rounded.view(np.int32) - 1).view(np.float32), rounded))
