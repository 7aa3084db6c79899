"""SASS of compiled kernels: what the machine code holds that decides how fast it can be.

Source: NVIDIA's "CUDA Binary Utilities", the instruction sets' tables.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sdengine.errors import EngineBuildError
from sdengine.kernels.launching import require_triton

_LINE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(?P<name>[A-Z][\w.]*)(?P<rest>.*)")
_LABEL = re.compile(r"^(\.L_\w+):")
_TARGET = re.compile(r"`\((\.L_\w+)\)")
# Products of matrices by warps, groups of warps, and Blackwell's unit beside them.
_TENSOR_CORE = re.compile(r"(?:HMMA|HGMMA|QGMMA|UTC\w*MMA)\b")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass(frozen=True)
class Ledger:
    """Count instructions of a kernel, as they stand, not as often as they run.

    Args:
        loads, stores: of global memory, by bytes of a thread.
        async_copies: from global to shared memory past the registers, by bytes of a thread.
        tensor_core: by name, such as HMMA or HGMMA.
        exponentials: EX2 of the special function unit.
        spills: loads and stores of local memory.
        instructions: all of them.
        loop: instructions of the longest loop that holds no other.
    """

    loads: dict[int, int]
    stores: dict[int, int]
    async_copies: dict[int, int]
    tensor_core: dict[str, int]
    exponentials: int
    spills: int
    instructions: int
    loop: int


def ledger(cubin: bytes) -> Ledger:
    """Disassemble a kernel and count.

    Raises:
        EngineBuildError: the disassembler refuses it.
        BackendUnavailableError: triton, which has a disassembler, is not installed.
    """
    return count(_disassemble(cubin))


def count(text: str) -> Ledger:
    """Count the instructions of what the disassembler wrote."""
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(names)
        elif found := _LINE.match(line):
            names.append(found["name"])
            if found["name"].split(".")[0] == "BRA" and (target := _TARGET.search(found["rest"])):
                jumps.append((len(names), target[1]))
    counts = Counter(name for name in names if name != "NOP")
    kinds = Counter({"": 0})
    for name, number in counts.items():
        kinds[name.split(".")[0]] += number
    return Ledger(
        _by_width(counts, "LDG"),
        _by_width(counts, "STG"),
        _by_width(counts, "LDGSTS"),
        {kind: n for kind, n in sorted(kinds.items()) if _TENSOR_CORE.fullmatch(kind)},
        counts["MUFU.EX2"] + counts["MUFU.EX2.F16"],
        kinds["LDL"] + kinds["STL"],
        sum(counts.values()),
        _longest_loop([(labels[to], end) for end, to in jumps if to in labels]),
    )


def _by_width(counts: Counter[str], kind: str) -> dict[int, int]:
    found: Counter[int] = Counter()
    for name, number in counts.items():
        base, *endings = name.split(".")
        if base == kind:
            found[next((_WIDTHS[e] for e in endings if e in _WIDTHS), 4)] += number
    return dict(sorted(found.items()))


def _longest_loop(jumps: Sequence[tuple[int, int]]) -> int:
    """Return the length of the longest (start, end) that goes back and holds no other."""
    loops = [(start, end) for start, end in jumps if start < end - 1]
    innermost = [
        (start, end)
        for start, end in loops
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in loops)
    ]
    return max((end - start for start, end in innermost), default=0)


def _disassemble(cubin: bytes) -> str:
    require_triton()
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [str(knobs.nvidia.nvdisasm.path), "--print-code", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise EngineBuildError(f"nvdisasm refuses a kernel: {done.stderr.strip()[:500]}")
    return done.stdout
