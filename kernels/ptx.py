"""PTX of compiled kernels: their entry read and corrected, assembled with triton's own `ptxas`.

Triton ends an entry's parameters with pointers to scratch memory that only its own launcher passes.
A plugin passes the kernel's arguments and nothing else, so those parameters have to go.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdengine.errors import EngineBuildError
from sdengine.kernels.launching import require_triton

_ENTRY = re.compile(r"\.visible\s+\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>[^)]*)\)")
_PARAMETER = re.compile(r"\.param\s+\.[a-z](?P<bits>\d+)\b.*\s(?P<name>[\w$]+)$")
_THREADS = re.compile(r"\.(?:req|max)ntid\s+(\d+)")
_TARGET = re.compile(r"^\.target\s+(sm_\w+)", re.MULTILINE)
_REGISTERS = re.compile(r"Used (\d+) registers")
_SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
# What the drivers read on which the oldest TensorRT with plugins of ours runs: those of CUDA 13.0.
OLDEST_DRIVERS_PTX = 90


@dataclass(frozen=True)
class Entry:
    """Describe a kernel's entry: name, parameters as (name, bits), threads of a block."""

    name: str
    parameters: tuple[tuple[str, int], ...]
    threads: int


@dataclass(frozen=True)
class Assembly:
    """Hold machine code and what it needs; bytes of spills count stores and loads."""

    cubin: bytes
    registers: int
    spill_bytes: int


def version_of_cuda(cuda: int) -> int:
    """Return the newest PTX, times ten, that a release of CUDA reads.

    Args:
        cuda: as CUDA counts its releases: 12060 is 12.6.

    Source: NVIDIA's "PTX ISA", release notes.
    """
    major, minor = cuda // 1000, cuda % 1000 // 10
    if major > 13:  # not known; newer ones read what older ones do
        return 90
    if major == 12 and minor > 5:
        return 79 + minor
    return 10 * (major - 4) + minor


def version_written(cc: int, limit: int = OLDEST_DRIVERS_PTX) -> int:
    """Return the version, times ten, that kernels for a target are written in.

    Args:
        cc: compute capability times ten.
        limit: the newest that may be written; triton's own assembler for the target may know less.

    Raises:
        BackendUnavailableError: triton is not installed.
    """
    major, _, minor = str(_assembler(cc).version).partition(".")
    return min(limit, version_of_cuda(1000 * int(major) + 10 * int(minor)))


def parse_entry(ptx: str) -> Entry:
    """Read the only entry of a PTX module.

    Raises:
        EngineBuildError: there is not exactly one, or it is not written as expected.
    """
    found = list(_ENTRY.finditer(ptx))
    if len(found) != 1:
        raise EngineBuildError(f"A compiled kernel has {len(found)} entries; expected one.")
    parameters = []
    for text in filter(None, (part.strip() for part in found[0]["parameters"].split(","))):
        match = _PARAMETER.match(text)
        if match is None:
            raise EngineBuildError(f"The kernel parameter {text!r} is of a kind not known here.")
        parameters.append((match["name"], int(match["bits"])))
    threads = _THREADS.search(ptx, found[0].end())
    if threads is None:
        raise EngineBuildError("A compiled kernel does not say how many threads it needs.")
    return Entry(found[0]["name"], tuple(parameters), int(threads[1]))


def without_scratch(ptx: str, arguments: tuple[tuple[str, str], ...]) -> str:
    """Return PTX whose entry has the kernel's arguments and no scratch pointers.

    Args:
        ptx: as Triton compiled it.
        arguments: names and Triton types that a launcher passes, in order.

    Raises:
        EngineBuildError: the parameters are not those arguments, or scratch memory is used.
    """
    entry = parse_entry(ptx)
    widths = [64 if kind.startswith("*") else 32 for _, kind in arguments]
    found = [bits for _, bits in entry.parameters]
    extra = entry.parameters[len(widths) :]
    if found[: len(widths)] != widths or any(bits != 64 for _, bits in extra):
        raise EngineBuildError(
            f"The kernel {entry.name} has parameters of {found} bits; its arguments have {widths}."
        )
    match = _ENTRY.search(ptx)
    assert match is not None
    body = ptx[match.end() :]
    for name, _ in extra:
        if re.search(rf"\b{re.escape(name)}\b", body):
            raise EngineBuildError(
                f"The kernel {entry.name} uses scratch memory, its parameter {name}, "
                "which only Triton's launcher provides."
            )
    kept = match["parameters"].split(",")[: len(widths)]
    start, end = match.span("parameters")
    return ptx[:start] + ",".join(kept).rstrip() + "\n" + ptx[end:]


def assemble(ptx: str) -> Assembly:
    """Assemble PTX for the target that it names.

    Raises:
        EngineBuildError: the assembler refuses it.
        BackendUnavailableError: triton is not installed.
    """
    target = _TARGET.search(ptx)
    if target is None:
        raise EngineBuildError("A compiled kernel does not name its target.")
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_text(ptx)
        tool = _assembler(int(re.sub(r"\D", "", target[1])))
        command = [str(tool.path), "--verbose", "--regAllocOptLevel=2"]
        command += [f"--gpu-name={target[1]}", str(source), "--output-file", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise EngineBuildError(f"ptxas refuses a kernel: {done.stderr.strip()[:500]}")
        log = done.stdout + done.stderr
        registers, spills = _REGISTERS.search(log), _SPILLS.search(log)
        if registers is None or spills is None:
            raise EngineBuildError("ptxas does not say how many registers a kernel uses.")
        spilled = int(spills[1]) + int(spills[2])
        return Assembly(output.read_bytes(), int(registers[1]), spilled)


def _assembler(cc: int) -> Any:
    """Return triton's assembler for a target: `path` and `version`."""
    require_triton()
    from triton.backends.nvidia.compiler import get_ptxas

    return get_ptxas(cc)
