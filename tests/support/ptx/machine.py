"""Machine: runs a kernel over all blocks of a grid, its warps in an order that a seed shuffles.

Lanes of a warp that part at a branch go on with the lowest instruction first, and so meet again.
One warp runs at a time, up to a barrier or for as long as chance has it; the same warp of all
blocks runs at once, for speed.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from support.ptx.faults import PtxFault
from support.ptx.global_memory import Buffer, GlobalMemory
from support.ptx.parser import Instruction
from support.ptx.program import Block, Program
from support.ptx.shared_memory import SharedMemory
from support.ptx.warps import LANES, Warps

# No test's kernel comes near it; a loop that does not end does.
_MOST_BLOCKS = 200_000
# How many blocks of instructions a warp runs before another one may, on average.
_USUAL_TURN = 4

Argument = Buffer | int | float | bytes


@dataclass
class Launch:
    """Hold what the threads of a launch share, and what was seen of them.

    Args:
        grid: blocks along each axis.
        threads: of a block.
        parameters: bytes of all parameters.
        memory, shared: what they read and write.
        seed: of the errors of approximate functions.
        random: whose order warps have.
        covered: indices of the instructions that ran.
        acted: lines of predicated instructions that some lane did not leave out.
        masked: lines of instructions that some running lane left out.
    """

    grid: tuple[int, int, int]
    threads: int
    parameters: NDArray[np.uint8]
    memory: GlobalMemory
    shared: SharedMemory
    seed: int
    random: np.random.Generator
    covered: set[int] = field(default_factory=set)
    acted: set[int] = field(default_factory=set)
    masked: set[int] = field(default_factory=set)


def run(
    program: Program,
    grid: Sequence[int],
    arguments: Sequence[Argument],
    memory: GlobalMemory,
    threads: int = 0,
    shared_bytes: int = 0,
    seed: int = 0,
) -> Launch:
    """Run a kernel to its end.

    Args:
        program: what to run.
        grid: blocks along up to three axes.
        arguments: for its parameters, in order.
        memory: with the buffers among them, frozen.
        threads: of a block, a multiple of 32; 0 for as many as the kernel says.
        shared_bytes: dynamic shared memory of a block.
        seed: of the order of warps, and of the errors of approximate functions.

    Raises:
        PtxFault: something that a GPU would do wrong, or that is not known here.
    """
    kernel = program.kernel
    threads = threads or kernel.threads
    if threads < LANES or threads % LANES or kernel.threads not in (0, threads):
        raise PtxFault(f"{threads} threads of a kernel for {kernel.threads}")
    x, y, z = (*grid, 1, 1)[:3]
    order = np.indices((z, y, x)).reshape(3, -1)[::-1].T  # as [blocks,(x,y,z)]
    shared = SharedMemory(kernel, shared_bytes, len(order), threads // LANES)
    parameters = _parameters(program, arguments)
    random = np.random.default_rng(seed)
    launch = Launch((x, y, z), threads, parameters, memory, shared, seed, random)
    warps = [Warps(launch, index, order) for index in range(threads // LANES)]
    with np.errstate(all="ignore"):
        _run_all(program, launch, warps)
    return launch


def _parameters(program: Program, arguments: Sequence[Argument]) -> NDArray[np.uint8]:
    sizes = program.kernel.parameters
    if len(arguments) != len(sizes):
        raise PtxFault(f"{len(arguments)} arguments for {len(sizes)} parameters")
    raw = b""
    for argument, (name, size) in zip(arguments, sizes, strict=True):
        if isinstance(argument, Buffer):
            piece = struct.pack("<Q", argument.address)
        elif isinstance(argument, bytes):
            piece = argument
        elif isinstance(argument, float):
            piece = struct.pack("<f", argument)
        else:
            piece = argument.to_bytes(size, "little", signed=argument < 0)
        if len(piece) != size:
            raise PtxFault(f"{len(piece)} bytes for the parameter {name} of {size}")
        raw += piece
    return np.frombuffer(raw, np.uint8)


def _run_all(program: Program, launch: Launch, all_warps: list[Warps]) -> None:
    for _ in range(_MOST_BLOCKS):
        ready = [warps for warps in all_warps if not (warps.ended | warps.waits).all()]
        if ready:
            warps = ready[launch.random.integers(len(ready))]
            for _ in range(int(launch.random.geometric(1 / _USUAL_TURN))):
                if (warps.ended | warps.waits).all():
                    break
                _run_block(program, launch, warps)
        elif not _open_barriers(program, launch, all_warps):
            return
    raise PtxFault(f"the kernel does not end within {_MOST_BLOCKS} blocks of instructions")


def _run_block(program: Program, launch: Launch, warps: Warps) -> None:
    ready = ~(warps.ended | warps.waits)
    lowest = warps.at[ready].min()
    if launch.random.integers(8) == 0:
        # So that no block of threads waits for ever for another one that waits for it.
        by_block = np.where(ready, warps.at, np.iinfo(np.int64).max).reshape(-1, LANES).min(1)
        lowest = launch.random.choice(by_block[by_block < len(program.blocks)])
    lanes = ready & (warps.at == lowest)
    warps.mask = None if lanes.all() else lanes
    block = program.blocks[lowest]
    launch.covered.update(range(block.start, block.start + len(block.steps)))
    done = 0
    try:
        for step in block.steps:
            step(warps)
            done += 1
        _leave(block, warps, lanes, program)
    except PtxFault as fault:
        instruction = _instruction(program, block.start + done)
        raise PtxFault(fault.reason, instruction.text) from None


def _leave(block: Block, warps: Warps, lanes: NDArray[np.bool_], program: Program) -> None:
    """Let the lanes that ran a block go to the next ones."""
    index = block.start + len(block.steps)
    if block.end != "next":
        warps.launch.covered.add(index)
    chosen = lanes
    if block.condition is not None:
        predicate = _instruction(program, index).predicate
        assert predicate is not None
        chosen = lanes & (block.condition(warps) ^ predicate.negated)
    warps.at[lanes] = block.next
    if block.end == "branch":
        warps.at[chosen] = block.target
    elif block.end == "return":
        warps.ended |= chosen
        if warps.copies.fly_for(chosen):
            raise PtxFault("threads end while asynchronous copies of theirs have not arrived")
    elif block.end == "barrier":
        warps.whole_blocks(_instruction(program, index).text)
        warps.waits |= lanes
    if not warps.ended.all() and (warps.at[~warps.ended] >= len(program.blocks)).any():
        raise PtxFault("the kernel has no end")


def _open_barriers(program: Program, launch: Launch, all_warps: list[Warps]) -> bool:
    """Let the blocks go on whose warps all wait; return whether there are any.

    Raises:
        PtxFault: some warps wait for others that have ended, or that wait elsewhere.
    """
    waits = np.array([warps.waits.reshape(-1, LANES).all(1) for warps in all_warps])
    if not waits.any():
        return False
    at = np.array([warps.at[::LANES] for warps in all_warps])
    stuck = (waits.any(0) & ~waits.all(0)) | (waits.all(0) & (at != at[0]).any(0))
    if stuck.any():
        raise PtxFault("some warps of a block wait at a barrier that others never reach")
    open_blocks = waits.all(0)
    launch.shared.epoch[open_blocks] += 1
    for warps in all_warps:
        warps.waits &= ~np.repeat(open_blocks, LANES)
        warps.warp_epoch[open_blocks] += 1
    return True


def _instruction(program: Program, index: int) -> Instruction:
    return program.kernel.instructions[index]
