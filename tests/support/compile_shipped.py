"""Compile kernels that ship, as a program: PTX files for a test that judges them.

    python compile_shipped.py FOLDER CC [WORDS...]

It runs in a process of its own because the tests' own interprets kernels. WORDS choose cases of
`sdengine.benchmarks.kernel_resources` whose operation and name have one of them; without, all
compile. Normalisations compile as the triton backend and as TensorRT's plugins launch them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdengine.benchmarks.kernel_resources import CASES, specialisations
from sdengine.compilers.tensorrt.gpus import compute_capability
from sdengine.kernels import group_norm
from sdengine.kernels.compiling import compile_kernel
from sdengine.kernels.group_norm_variants import paired_variants, single_variants, wants_several
from sdengine.kernels.registry import OPS
from sdengine.kernels.variants import Specialisation

DTYPE, EPS = "float16", 1e-5


def main(folder: Path, capability: str, *words: str) -> int:
    """Write one PTX file for each distinct machine code in fp16."""
    cc = compute_capability(capability)
    done = set()
    for op, name, shape in CASES:
        if words and not any(word in f"{op}, {name}" for word in words):
            continue
        if not OPS[op].supports(shape, DTYPE, cc)[0]:
            continue
        for specialisation in (*specialisations(op, shape, DTYPE, cc), *plugins(op, shape)):
            if (key := str(specialisation)) not in done:
                done.add(key)
                ptx = compile_kernel(specialisation, cc).ptx
                (folder / f"{op}-{specialisation.variant.name}-{len(done)}.ptx").write_text(ptx)
    return 0 if done else 1


def plugins(op: str, shape: Any) -> Iterator[Specialisation]:
    """Yield what plugins of group normalisation compile for a map."""
    if op != group_norm.OP or shape.residual or shape.time_embedding:
        return
    divisor = shape.positions
    if not wants_several(shape):
        for variant in single_variants(shape):
            yield group_norm.specialise(shape, DTYPE, variant, EPS, True, divisor)
        return
    for variant in paired_variants(shape):
        yield group_norm.specialise_partial(shape, DTYPE, variant, divisor)
        yield group_norm.specialise_apply(shape, DTYPE, variant, EPS, True, divisor)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
