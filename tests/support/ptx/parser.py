"""Parser of PTX text: the entries of a module, each as a list of instructions.

Debug sections, comments and line directives are passed over. What is not understood is a fault.

Source: "Parallel Thread Execution ISA" (NVIDIA), chapters 4 and 5.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from support.ptx.faults import PtxFault

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)(?P<rest>[^{]*)\{")
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z](?P<bits>\d+)(?:\s+\.ptr[\w\s.]*?)?\s+"
    r"(?P<name>[\w$]+)(?:\[(?P<length>\d+)\])?$"
)
_REGISTERS = re.compile(r"\.reg\s+\.(?P<kind>\w+)\s+(?P<name>%?[\w$]+)(?:<(?P<count>\d+)>)?$")
_SHARED = re.compile(
    r"(?P<extern>\.extern\s+)?\.shared\s+\.align\s+(?P<align>\d+)\s+\.b8\s+"
    r"(?P<name>[\w$]+)\[(?P<length>\d*)\]\s*;"
)
_THREADS = re.compile(r"\.(?:req|max)ntid\s+(\d+)")
_LABEL = re.compile(r"(?P<name>[\w$]+)\s*:(?!:)\s*")
_STATEMENT = re.compile(
    r"(?:@(?P<not>!?)(?P<predicate>%?\w+)\s+)?(?P<opcode>[a-z][\w.:]*)(?P<rest>.*)$", re.DOTALL
)
_ADDRESS = re.compile(r"(?P<base>%?[\w$]+)\s*(?:\+\s*(?P<offset>-?\w+))?$")
_INTEGER = re.compile(r"-?(?:0[xX][\da-fA-F]+|\d+)U?$")
_FLOAT = re.compile(r"0(?P<kind>[fFdD])(?P<digits>[\da-fA-F]+)$")


@dataclass(frozen=True)
class Name:
    """A register, special register, label or variable; negated in front of a predicate."""

    text: str
    negated: bool = False


@dataclass(frozen=True)
class Integer:
    """An integer constant."""

    value: int


@dataclass(frozen=True)
class FloatBits:
    """A floating-point constant by its bits."""

    value: int
    bits: int


@dataclass(frozen=True)
class Address:
    """A register, variable or number and a constant offset in bytes."""

    base: Name | Integer
    offset: int


@dataclass(frozen=True)
class Vector:
    """Operands in braces."""

    items: tuple[Operand, ...]


Operand = Name | Integer | FloatBits | Address | Vector


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Args:
        text: as it is written, without the semicolon.
        line: of the module's text, from 0.
        opcode: up to the first dot.
        modifiers: what follows, split at dots.
        operands: in order.
        predicate: that it depends on, or None.
    """

    text: str
    line: int
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    predicate: Name | None

    @property
    def name(self) -> str:
        """Opcode and modifiers as they are written."""
        return ".".join((self.opcode, *self.modifiers))


@dataclass(frozen=True)
class Kernel:
    """Hold an entry.

    Args:
        name: of the entry.
        target: such as sm_80.
        parameters: names and sizes in bytes, in order.
        threads: of a block, where the entry says so, or 0.
        registers: kind of each, such as b32 or pred.
        shared: names and sizes in bytes of shared variables; None for the dynamic one.
        instructions: in order.
        labels: name to the index of the instruction that follows.
    """

    name: str
    target: str
    parameters: tuple[tuple[str, int], ...]
    threads: int
    registers: dict[str, str]
    shared: dict[str, int | None]
    instructions: tuple[Instruction, ...]
    labels: dict[str, int] = field(default_factory=dict)


def parse(ptx: str) -> dict[str, Kernel]:
    """Return the entries of a module by name.

    Raises:
        PtxFault: something in it is not understood.
    """
    text = _COMMENT.sub(lambda match: "\n" * match[0].count("\n"), ptx)
    target = re.search(r"\.target\s+(sm_\w+)", text)
    if target is None:
        raise PtxFault("the module does not name its target")
    found = {}
    for match in _ENTRY.finditer(text):
        end = _closing_brace(text, match.end())
        body = text[match.end() : end]
        first_line = text.count("\n", 0, match.end())
        shared = _shared(text[: match.start()] + body)
        registers, instructions, labels = _parse_body(body, first_line)
        threads = _THREADS.search(match["rest"])
        found[match["name"]] = Kernel(
            match["name"],
            target[1],
            _parameters(match["parameters"]),
            int(threads[1]) if threads else 0,
            registers,
            shared,
            instructions,
            labels,
        )
    return found


def _closing_brace(text: str, start: int) -> int:
    depth = 1
    for match in re.compile(r"[{}]").finditer(text, start):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise PtxFault("the entry does not end")


def _shared(text: str) -> dict[str, int | None]:
    return {
        match["name"]: int(match["length"]) if match["length"] else None
        for match in _SHARED.finditer(text)
    }


def _parameters(text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        match = _PARAMETER.match(part)
        if match is None:
            raise PtxFault(f"the parameter {part!r} is not understood")
        found.append((match["name"], int(match["bits"]) // 8 * int(match["length"] or 1)))
    return tuple(found)


def _parse_body(
    body: str, first_line: int
) -> tuple[dict[str, str], tuple[Instruction, ...], dict[str, int]]:
    registers: dict[str, str] = {}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    pending = ""
    for number, line in enumerate(body.split("\n"), first_line):
        rest = line.strip()
        if not pending and rest.startswith((".loc", ".file", ".pragma")):
            continue
        while not pending and (label := _LABEL.match(rest)):
            labels[label["name"]] = len(instructions)
            rest = rest[label.end() :]
        *whole, pending = f"{pending} {rest}".strip().split(";")
        # Braces that stand before an instruction only group: names are unique in an entry.
        pending = pending.lstrip("{} ")
        for statement in filter(None, (part.lstrip("{} ").rstrip() for part in whole)):
            if statement.startswith(".reg"):
                registers |= _declared(statement)
            elif not statement.startswith((".shared", ".loc", ".pragma")):
                instructions.append(_parse_statement(statement, number))
    if pending:
        raise PtxFault(f"{pending!r} does not end")
    return registers, tuple(instructions), labels


def _declared(statement: str) -> dict[str, str]:
    match = _REGISTERS.match(statement)
    if match is None:
        raise PtxFault(f"the declaration {statement!r} is not understood")
    if match["count"] is None:
        return {match["name"]: match["kind"]}
    return {f"{match['name']}{i}": match["kind"] for i in range(int(match["count"]))}


def _parse_statement(statement: str, line: int) -> Instruction:
    match = _STATEMENT.match(statement)
    if match is None:
        raise PtxFault(f"{statement!r} is not understood")
    opcode, *modifiers = match["opcode"].split(".")
    operands = tuple(_operand(part, statement) for part in _split(match["rest"]))
    predicate = Name(match["predicate"], bool(match["not"])) if match["predicate"] else None
    text = " ".join(statement.split())
    return Instruction(text, line, opcode, tuple(modifiers), operands, predicate)


def _split(text: str) -> list[str]:
    """Split at commas that stand in no brackets."""
    parts, depth, start = [], 0, 0
    for at, character in enumerate(text):
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts


def _operand(text: str, statement: str) -> Operand:
    if text.startswith("{"):
        return Vector(tuple(_operand(part, statement) for part in _split(text[1:-1])))
    if text.startswith("["):
        match = _ADDRESS.match(text[1:-1].strip())
        if match is None:
            raise PtxFault(f"the address {text} of {statement!r} is not understood")
        base = _operand(match["base"], statement)
        assert isinstance(base, (Name, Integer))
        return Address(base, int(match["offset"] or "0", 0))
    if _INTEGER.match(text):
        return Integer(int(text.rstrip("U"), 0))
    if match := _FLOAT.match(text):
        return FloatBits(int(match["digits"], 16), 32 if match["kind"] in "fF" else 64)
    if re.match(r"!?%?[\w$.]+$", text):
        return Name(text.lstrip("!"), text.startswith("!"))
    raise PtxFault(f"the operand {text!r} of {statement!r} is not understood")
