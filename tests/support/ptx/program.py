"""Programs: instructions decoded into steps, in blocks that control flow enters at their head.

What is not in the table of instructions is a fault with the instruction's text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from support.ptx import (
    conversions,
    floating,
    integer,
    memory_steps,
    warp_steps,
)
from support.ptx.faults import PtxFault
from support.ptx.parser import Instruction, Integer, Kernel, Name
from support.ptx.warps import Read, Step, Warps, reader

Decoder = Callable[[Instruction, Kernel], Step]
_BARRIERS = {("bar", ("sync",)), ("barrier", ("sync",)), ("barrier", ("sync", "aligned"))}


def _arithmetic(of_integers: Decoder) -> Decoder:
    """Return the decoder of an opcode that has integers and floating-point numbers."""

    def decode(instruction: Instruction, kernel: Kernel) -> Step:
        if integer.is_integer(instruction):
            return of_integers(instruction, kernel)
        if "approx" in instruction.modifiers or "full" in instruction.modifiers:
            return floating.approximate(instruction, kernel)
        return floating.arithmetic(instruction, kernel)

    return decode


def _unknown(instruction: Instruction, kernel: Kernel) -> Step:
    raise PtxFault("unknown instruction")


def _nothing(instruction: Instruction, kernel: Kernel) -> Step:
    return lambda warps: None


_DECODERS: dict[str, Decoder] = {
    **dict.fromkeys(("and", "or", "xor", "not"), integer.logic),
    **dict.fromkeys(("shl", "shr"), integer.shift),
    **dict.fromkeys(("fma", "sqrt", "rsqrt", "ex2", "rcp"), _arithmetic(_unknown)),
    **dict.fromkeys(("div", "rem"), _arithmetic(integer.divide)),
    **dict.fromkeys(("mul", "mad"), _arithmetic(integer.multiply)),
    "add": _arithmetic(integer.simple(lambda a, b: a + b)),
    "sub": _arithmetic(integer.simple(lambda a, b: a - b)),
    "min": _arithmetic(integer.simple(integer.least)),
    "max": _arithmetic(integer.simple(integer.largest)),
    "neg": _arithmetic(integer.simple(lambda a: -a)),
    "abs": _arithmetic(integer.simple(abs)),
    "bfe": integer.extract,
    "setp": integer.compare,
    "selp": integer.select,
    "mov": conversions.move,
    "cvt": conversions.convert,
    "cvta": conversions.convert_address,
    "ld": memory_steps.load,
    "st": memory_steps.store,
    "cp": memory_steps.copy_async,
    **dict.fromkeys(("atom", "red"), memory_steps.atomic),
    # Everybody sees memory as it is, at once.
    **dict.fromkeys(("membar", "fence"), _nothing),
    "shfl": warp_steps.shuffle,
    "bar": warp_steps.synchronise,
    "ldmatrix": warp_steps.load_matrices,
    "stmatrix": warp_steps.store_matrices,
    "mma": warp_steps.multiply_matrices,
}


@dataclass(frozen=True)
class Block:
    """Hold instructions that run one after another.

    Args:
        start: index of the first.
        steps: one each.
        end: "next" where the block below follows, "branch", "return" or "barrier".
        condition: the lanes that branch or return; None for all.
        next: index of the block below.
        target: index of the block to branch to.
    """

    start: int
    steps: tuple[Step, ...]
    end: str
    condition: Read | None
    next: int
    target: int


@dataclass(frozen=True)
class Program:
    """Hold a kernel's blocks; a branch is to the index of a block."""

    kernel: Kernel
    blocks: tuple[Block, ...]


def compile_program(kernel: Kernel) -> Program:
    """Decode a kernel.

    Raises:
        PtxFault: an instruction is unknown.
    """
    starts = {0, *kernel.labels.values()}
    ends = {}
    for index, instruction in enumerate(kernel.instructions):
        end = _end_of(instruction)
        if end is not None:
            ends[index] = end
            starts.add(index + 1)
    order = sorted(start for start in starts if start < len(kernel.instructions))
    number = {start: i for i, start in enumerate(order)}
    number[len(kernel.instructions)] = len(order)
    blocks = []
    for start, after in zip(order, [*order[1:], len(kernel.instructions)], strict=True):
        last = kernel.instructions[after - 1]
        end = ends.get(after - 1, "next")
        target = _target(last, kernel, number) if end == "branch" else -1
        inner = kernel.instructions[start : after - (end != "next")]
        steps = tuple(_step(instruction, kernel) for instruction in inner)
        blocks.append(
            Block(start, steps, end, _condition(last, kernel, end), number[after], target)
        )
    return Program(kernel, tuple(blocks))


def _end_of(instruction: Instruction) -> str | None:
    """Return how a block ends with an instruction, or None where it goes on."""
    if instruction.opcode == "bra":
        return "branch"
    if instruction.opcode in ("ret", "exit"):
        return "return"
    if (instruction.opcode, instruction.modifiers) in _BARRIERS:
        if instruction.operands != (Integer(0),) or instruction.predicate:
            raise PtxFault("only the barrier 0 of all threads is known", instruction.text)
        return "barrier"
    return None


def _target(instruction: Instruction, kernel: Kernel, number: dict[int, int]) -> int:
    (label,) = instruction.operands
    if not isinstance(label, Name) or label.text not in kernel.labels:
        raise PtxFault("there is no such label", instruction.text)
    return number[kernel.labels[label.text]]


def _condition(instruction: Instruction, kernel: Kernel, end: str) -> Read | None:
    if end not in ("branch", "return") or instruction.predicate is None:
        return None
    return reader(instruction.predicate, "pred", kernel)


def _step(instruction: Instruction, kernel: Kernel) -> Step:
    try:
        step = _DECODERS.get(instruction.opcode, _unknown)(instruction, kernel)
        if instruction.predicate is None:
            return step
        return _predicated(step, instruction, kernel)
    except PtxFault as fault:
        raise PtxFault(fault.reason, instruction.text) from None
    except (ValueError, KeyError, IndexError, AssertionError) as error:
        # Operands or modifiers of a form that no decoder expects.
        raise PtxFault("unknown instruction", instruction.text) from error


def _predicated(step: Step, instruction: Instruction, kernel: Kernel) -> Step:
    """Return a step that runs only in the lanes where the predicate holds."""
    assert instruction.predicate is not None
    read, negated = reader(instruction.predicate, "pred", kernel), instruction.predicate.negated

    def run(warps: Warps) -> None:
        lanes = read(warps) ^ negated
        outer = warps.mask
        runs = lanes if outer is None else lanes & outer
        if runs.any():
            warps.launch.acted.add(instruction.line)
        if runs.all():
            return step(warps)
        if outer is None or (outer & ~lanes).any():
            warps.launch.masked.add(instruction.line)
        if runs.any():
            warps.mask = runs
            step(warps)
            warps.mask = outer
        return None

    return run
