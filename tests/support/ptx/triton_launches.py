"""Launches of the Triton kernels: their launchers' own calls, run by the interpreter of PTX.

A launcher decides what to compile and with which grid and arguments, as it does on a GPU; what it
would hand to Triton's launcher is first recorded, then compiled in a process that compiles, and
then run here.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from support.ptx.faults import PtxFault
from support.ptx.global_memory import Buffer, GlobalMemory
from support.ptx.machine import Argument, run
from support.ptx.parser import parse
from support.ptx.program import Program, compile_program
from torch import Tensor

from sdengine.kernels import launching
from sdengine.kernels.variants import Specialisation

Call = Callable[[], tuple[Tensor, ...]]

_COMPILE = """
import pickle, sys
from sdengine.kernels.compiling import compile_kernel

with open(sys.argv[1], "rb") as file:
    wanted = pickle.load(file)
found = []
for specialisation, cc in wanted:
    compiled = compile_kernel(specialisation, cc)
    found.append((compiled.ptx, compiled.shared_bytes))
with open(sys.argv[2], "wb") as file:
    pickle.dump(found, file)
"""


@dataclass
class Compiled:
    """Hold a compiled kernel, and what was seen of it in all its runs.

    Args:
        ptx: its text.
        shared_bytes: dynamic shared memory of a block.
        covered, acted, masked: as of `machine.Launch`.
    """

    ptx: str
    shared_bytes: int
    covered: set[int] = field(default_factory=set)
    acted: set[int] = field(default_factory=set)
    masked: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """The decoded kernel; a PtxFault where an instruction is unknown."""
        if self._program is None:
            (kernel,) = parse(self.ptx).values()
            self._program = compile_program(kernel)
        return self._program

    @property
    def code(self) -> tuple[str, ...]:
        """The instructions' text: equal for capabilities that differ in nothing else."""
        return tuple(instruction.text for instruction in self.program.kernel.instructions)


def key_of(specialisation: Specialisation, cc: int) -> str:
    """Return what tells compiled kernels apart."""
    return repr((specialisation.function, specialisation.arguments, specialisation.constants,
                 specialisation.variant, sorted(specialisation.aligned), cc))  # fmt: skip


def wanted_by(calls: Sequence[Call], cc: int) -> dict[str, tuple[Specialisation, int]]:
    """Return what calls of launchers would compile, without running anything."""
    wanted: dict[str, tuple[Specialisation, int]] = {}

    def record(specialisation: Specialisation, grid: Any, arguments: Any) -> None:
        wanted[key_of(specialisation, cc)] = (specialisation, cc)

    with _replaced(record, cc):
        for call in calls:
            call()
    return wanted


def compile_all(wanted: dict[str, tuple[Specialisation, int]], folder: Path) -> dict[str, Compiled]:
    """Compile kernels in a process that does not interpret them, in a folder for its files."""
    request, answer = folder / "wanted.pickle", folder / "compiled.pickle"
    request.write_bytes(pickle.dumps(list(wanted.values())))
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, "-c", _COMPILE, str(request), str(answer)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = pickle.loads(answer.read_bytes())
    return {key: Compiled(*one) for key, one in zip(wanted, found, strict=True)}


def interpret(
    call: Call,
    compiled: dict[str, Compiled],
    cc: int,
    inputs: Sequence[Tensor],
    seed: int = 0,
) -> tuple[Tensor, ...]:
    """Call a launcher and let the interpreter run what it launches.

    Args:
        call: of the launcher.
        compiled: its kernels by `key_of`.
        cc: compute capability times ten that it sees.
        inputs: tensors that it is given, which no kernel may write. What lies between their
            elements must not even be read.
        seed: as of `machine.run`.

    Returns:
        What the launcher returns.

    Raises:
        PtxFault: as `machine.run`, or a result was not written wholly.
    """
    # Bytes that may be read, of inputs and of storages that were allocated without content.
    known: dict[int, Any] = {}
    for tensor in inputs:
        at = tensor.untyped_storage().data_ptr()
        known[at] = known.get(at, False) | _elements(tensor)
    read_only = set(known)

    def execute(
        specialisation: Specialisation, grid: tuple[int, ...], arguments: dict[str, Any]
    ) -> None:
        kernel = compiled[key_of(specialisation, cc)]
        memory = GlobalMemory(unique_writes=True)
        buffers: dict[int, Buffer] = {}
        contents: dict[int, NDArray[np.uint8]] = {}
        given: list[Argument] = []
        for name, _ in specialisation.arguments:
            value = arguments[name]
            if not isinstance(value, Tensor):
                given.append(value)
                continue
            storage = value.untyped_storage()
            at = storage.data_ptr()
            if at not in buffers:
                contents[at] = _bytes_of(value)
                may_write = at not in read_only
                buffers[at] = memory.add(name, contents[at], known.get(at, True), may_write)
            given.append(buffers[at].at(int(value.storage_offset()) * value.element_size()))
        memory.freeze()
        launch = run(kernel.program, grid, given, memory, 0, kernel.shared_bytes, seed)
        kernel.covered |= launch.covered
        kernel.acted |= launch.acted
        kernel.masked |= launch.masked
        for at, buffer in buffers.items():
            contents[at][:], known[at] = memory.content(buffer)

    with _replaced(execute, cc, known):
        results = call()
    for result in results:
        if not np.all(known[result.untyped_storage().data_ptr()]):
            raise PtxFault("part of a result was never written")
    return results


def _bytes_of(tensor: Tensor) -> NDArray[np.uint8]:
    """Return the bytes of a tensor's whole storage, shared with it."""
    storage = tensor.untyped_storage()
    whole = torch.tensor([], dtype=torch.uint8)
    return np.asarray(whole.set_(storage, 0, (storage.nbytes(),)).numpy())  # type: ignore[call-overload]


def _elements(tensor: Tensor) -> NDArray[np.bool_]:
    """Return which bytes of a tensor's storage belong to its elements."""
    size = tensor.element_size()
    whole = np.zeros((tensor.untyped_storage().nbytes() // size, size), bool)
    places = np.full((), tensor.storage_offset())
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places[..., None] + np.arange(length) * stride
    whole[places.reshape(-1)] = True
    return whole.reshape(-1)


@contextmanager
def _replaced(
    launch: Callable[..., None], cc: int, unwritten: dict[int, Any] | None = None
) -> Iterator[None]:
    """Let launchers see a GPU of a compute capability, and launch with a function of ours.

    Storages that are allocated without content are noted in `unwritten`.
    """

    def noted(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def function(*arguments: Any, **options: Any) -> Tensor:
            tensor = allocate(*arguments, **options)
            if unwritten is not None:
                unwritten[tensor.untyped_storage().data_ptr()] = False
            return tensor

        return function

    module, package = cast(Any, launching), cast(Any, torch)
    before = module.launch, module.compute_capability, torch.empty, torch.empty_like
    module.launch = launch
    module.compute_capability = lambda tensors: cc
    package.empty, package.empty_like = noted(torch.empty), noted(torch.empty_like)
    try:
        yield
    finally:
        module.launch, module.compute_capability, package.empty, package.empty_like = before
