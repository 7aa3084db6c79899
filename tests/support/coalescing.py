"""How many sectors of memory a kernel touches for each byte that it uses.

The interpreter tells every address of every load and store, the compiler which element each lane of
a warp holds; together they give what each of a warp's memory instructions asks for.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECTOR_BYTES = 32
_VECTOR_BYTES = 16
_LAYOUT = re.compile(
    r"^(#\w+) = #ttg\.blocked<\{sizePerThread = (\[.*?\]), threadsPerWarp = (\[.*?\]), "
    r"warpsPerCTA = (\[.*?\]), order = (\[.*?\])",
    re.MULTILINE,
)
_ACCESS = re.compile(r"tt\.(load|store) .*: tensor<([\dx]+)x!tt\.ptr<f(\d+)>, (#\w+)>")
# Compiles what it reads as arguments of `specialise*`, and writes the code with layouts.
_PROGRAM = """
import json, sys
import triton.compiler
from sdengine.kernels import group_norm
from sdengine.kernels.compiling import compile_kernel
from sdengine.kernels.variants import Variant

kept, compile = [], triton.compiler.compile

def keep(*arguments):
    made = compile(*arguments)
    kept.append(made.asm["ttgir"])
    return made

triton.compiler.compile = keep
for cc, shape, variant in json.load(sys.stdin):
    shape, variant = group_norm.GroupNormShape(**shape), Variant(**variant)
    if group_norm.is_split(variant):
        compile_kernel(group_norm.specialise_partial(shape, "float16", variant), cc)
        compile_kernel(group_norm.specialise_apply(shape, "float16", variant, 1e-5), cc)
    else:
        compile_kernel(group_norm.specialise(shape, "float16", variant, 1e-5), cc)
print(json.dumps(kept))
"""


@dataclass(frozen=True)
class Layout:
    """Where elements lie: by axis, those of a lane, lanes, warps; and the axes, fastest first."""

    elements: tuple[int, ...]
    lanes: tuple[int, ...]
    warps: tuple[int, ...]
    order: tuple[int, ...]

    def instructions(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """Return [instructions,32,elements of a lane]: which element each lane asks for."""
        tile = [e * t * w for e, t, w in zip(self.elements, self.lanes, self.warps, strict=True)]
        repeats = [range(max(1, s // t)) for s, t in zip(shape, tile, strict=True)]
        fast = self.order[0]
        outer = [range(1 if axis == fast else n) for axis, n in enumerate(self.elements)]
        found = []
        for repeat in itertools.product(*repeats):
            for warp in itertools.product(*(range(n) for n in self.warps)):
                for element in itertools.product(*outer):
                    found.append([self._lane(repeat, warp, lane, element, tile, shape)
                                  for lane in range(32)])  # fmt: skip
        return np.unique(np.array(found), axis=0)  # tensors smaller than a tile repeat

    def _lane(
        self,
        repeat: tuple[int, ...],
        warp: tuple[int, ...],
        lane: int,
        element: tuple[int, ...],
        tile: list[int],
        shape: tuple[int, ...],
    ) -> list[int]:
        at = [0] * len(shape)
        for axis in self.order:
            lane, place = divmod(lane, self.lanes[axis])
            step = self.elements[axis]
            at[axis] = repeat[axis] * tile[axis] + element[axis]
            at[axis] += step * (place + self.lanes[axis] * warp[axis])
        fast, row = self.order[0], []
        for number in range(self.elements[fast]):
            place_of = [value % size for value, size in zip(at, shape, strict=True)]
            place_of[fast] = (at[fast] + number) % shape[fast]
            row.append(int(np.ravel_multi_index(place_of, shape)))
        return row


Key = tuple[str, tuple[int, ...], int]  # load or store, shape, bytes of an element


def layouts(ttgir: str) -> dict[Key, Layout]:
    """Return the layout of loads and stores of maps."""
    known = {name: Layout(*(tuple(json.loads(part)) for part in parts))
             for name, *parts in _LAYOUT.findall(ttgir)}  # fmt: skip
    found: dict[Key, Layout] = {}
    for kind, sizes, bits, name in _ACCESS.findall(ttgir):
        shape = tuple(map(int, sizes.split("x")))
        if len(shape) == 2 and min(shape) > 1:
            before = found.setdefault((kind, shape, int(bits) // 8), known[name])
            assert before == known[name], "loads of one shape have two layouts"
    return found


def compiled_code(cases: list[tuple[int, Any, Any]], folder: Path) -> list[str]:
    """Compile (cc, shape, variant) of group normalisations in a process that does not interpret."""
    described = [(cc, vars(shape), vars(variant)) for cc, shape, variant in cases]
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(described),
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")},
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


@dataclass(frozen=True)
class Access:
    """One load or store of a tensor of addresses; element_bytes is what lies at each."""

    kind: str
    addresses: NDArray[np.int64]
    mask: NDArray[np.bool_]
    element_bytes: int

    @property
    def key(self) -> Key:
        """What its layout is found by."""
        return self.kind, self.addresses.shape, self.element_bytes


@contextmanager
def recorded(accesses: list[Access]) -> Iterator[None]:
    """Let the interpreter note every load and store of maps, two-dimensional ones."""
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    load, store = builder.create_masked_load, builder.create_masked_store

    def note(kind: str, pointers: Any, mask: Any) -> None:
        if pointers.data.ndim == 2 and min(pointers.data.shape) > 1:
            size = pointers.get_element_ty().primitive_bitwidth // 8
            addresses = pointers.data.astype(np.int64)
            accesses.append(Access(kind, addresses, mask.data.astype(bool), size))

    def noted_load(self: Any, pointers: Any, mask: Any, *others: Any) -> Any:
        note("load", pointers, mask)
        return load(self, pointers, mask, *others)

    def noted_store(self: Any, pointers: Any, value: Any, mask: Any, *others: Any) -> Any:
        note("store", pointers, mask)
        return store(self, pointers, value, mask, *others)

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    try:
        yield
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store


def ratio(accesses: list[Access], known: dict[Key, Layout]) -> float:
    """Return the bytes of all sectors that warps' instructions touch for each byte they use."""
    touched = used = 0
    instructions = {}
    for access in accesses:
        if access.key not in instructions:
            lanes = known[access.key].instructions(access.addresses.shape)
            width = min(lanes.shape[2], _VECTOR_BYTES // access.element_bytes)
            asked = lanes.reshape(len(lanes), 32, -1, width).transpose(0, 2, 1, 3)
            instructions[access.key] = asked.reshape(-1, 32 * width)
        asked = instructions[access.key]
        addresses, mask = access.addresses.ravel()[asked], access.mask.ravel()[asked]
        sectors = np.sort(np.where(mask, addresses // SECTOR_BYTES, -1), axis=1)
        first = np.ones((len(sectors), 1), bool)
        new = np.hstack([first, sectors[:, 1:] != sectors[:, :-1]]) & (sectors >= 0)
        touched += SECTOR_BYTES * int(new.sum())
        used += access.element_bytes * int(access.mask.sum())
    return touched / used
