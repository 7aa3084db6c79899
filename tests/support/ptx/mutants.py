"""Mutants of PTX: one barrier, wait or mask less, or one address that is a step too far.

A mask counts only where it left something out in the runs that were watched: without that, its
absence changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from support.ptx.parser import Address, FloatBits, Instruction, Integer
from support.ptx.triton_launches import Compiled

_OFFSET = re.compile(r"\[\s*(%?[\w$]+)\s*(?:\+\s*(-?\d+)\s*)?\]")
_COPIES = "cp.async.c"


@dataclass(frozen=True)
class Mutant:
    """Hold a changed kernel.

    Args:
        kind: "barrier", "wait", "mask" or "address".
        what: the instruction that was changed, as it was.
        compiled: with the changed text.
    """

    kind: str
    what: str
    compiled: Compiled


def mutants_of(original: Compiled) -> Iterator[Mutant]:
    """Yield the mutants of a kernel that was run before, so that its masks were watched."""
    lines = original.ptx.split("\n")
    for instruction in original.program.kernel.instructions:
        for kind, changed in _changes(instruction, original):
            before = lines[instruction.line]
            assert instruction.opcode in before
            lines[instruction.line] = f"{changed};" if changed else ""
            text = "\n".join(lines)
            lines[instruction.line] = before
            yield Mutant(kind, instruction.text, Compiled(text, original.shared_bytes))


def _changes(instruction: Instruction, original: Compiled) -> Iterator[tuple[str, str]]:
    """Yield kind and new text of each change to an instruction."""
    text = instruction.text
    if instruction.opcode in ("bar", "barrier"):
        yield "barrier", ""
    if text.startswith(("cp.async.wait_group", "cp.async.wait_all")):
        yield "wait", ""
    if instruction.line in original.masked:
        yield "mask", _unmasked(instruction)
    places = list(_OFFSET.finditer(text))
    if instruction.opcode in ("ld", "st", "ldmatrix", "stmatrix", "cp", "atom", "red"):
        if "param" in instruction.modifiers:
            return
        if instruction.predicate is not None and instruction.line not in original.acted:
            return
        for place in places:
            moved = f"[{place[1]}+{int(place[2] or 0) + _size(instruction)}]"
            yield "address", text[: place.start()] + moved + text[place.end() :]


def _unmasked(instruction: Instruction) -> str:
    """Return the instruction as it is for lanes that nothing masks."""
    if instruction.text.startswith(_COPIES):
        size = instruction.operands[2]
        assert isinstance(size, Integer)
        head, _ = instruction.text.rsplit(",", 1)
        return f"{head}, {size.value}"
    if instruction.opcode == "selp":
        target, *values, _ = instruction.text.split(None, 1)[1].split(",")
        kept = values[isinstance(instruction.operands[1], (FloatBits, Integer))]
        return f"mov.b{instruction.modifiers[0][1:]} {target}, {kept}"
    return re.sub(r"^@!?\S+\s+", "", instruction.text)


def _size(instruction: Instruction) -> int:
    """Return the bytes that an access moves for a lane, by which it is put off."""
    if instruction.opcode in ("ldmatrix", "stmatrix"):
        return 16
    if instruction.opcode == "cp":
        size = instruction.operands[2]
        assert isinstance(size, Integer)
        return size.value
    vector = next((int(m[1:]) for m in instruction.modifiers if re.match(r"v\d", m)), 1)
    bits = int(re.sub(r"\D", "", instruction.modifiers[-1]))
    assert any(isinstance(operand, Address) for operand in instruction.operands)
    return vector * bits // 8
