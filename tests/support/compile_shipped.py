"""Compile kernels that ship, as a program: PTX files for a test that judges them.

    python compile_shipped.py FOLDER CC [WORDS]

It runs in a process of its own because the tests' own interprets kernels. WORDS chooses cases of
`sdengine.benchmarks.kernel_resources` whose operation and name have them; without, all compile.
"""

from __future__ import annotations

import sys
from pathlib import Path

from sdengine.benchmarks.kernel_resources import CASES, specialisations
from sdengine.compilers.tensorrt.gpus import compute_capability
from sdengine.kernels.compiling import compile_kernel
from sdengine.kernels.registry import OPS


def main(folder: Path, capability: str, words: str = "") -> int:
    """Write one PTX file for each distinct machine code in fp16."""
    cc, dtype = compute_capability(capability), "float16"
    done = set()
    for op, name, shape in CASES:
        if words not in f"{op}, {name}" or not OPS[op].supports(shape, dtype, cc)[0]:
            continue
        for specialisation in specialisations(op, shape, dtype, cc):
            if (key := str(specialisation)) not in done:
                done.add(key)
                ptx = compile_kernel(specialisation, cc).ptx
                (folder / f"{op}-{specialisation.variant.name}-{len(done)}.ptx").write_text(ptx)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
