"""PTX of csrc/cuda, compiled by nvcc with the flags of the build."""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from support.ptx.parser import parse
from support.ptx.program import Program, compile_program

CSRC = Path(__file__).parents[3] / "csrc"
# As in CMakeLists.txt.
_FLAGS = {"noise": ["-fmad=false"]}
_TYPES = {"f": "float32", "6__half": "float16", "13__nv_bfloat16": "bfloat16"}
_BODY = re.compile(r"\d(?P<body>[A-Z][a-z]+Body)(?:I(?P<type>f|6__half|13__nv_bfloat16)E)?EEE")


def find_nvcc() -> str | None:
    """Return where nvcc is: on the path, or in the packages of CUDA 13 on PyPI."""
    packages = Path(sysconfig.get_path("purelib"), "nvidia", "cu13", "bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path=str(packages))


def compile_cuda(name: str, cc: int, folder: Path) -> dict[tuple[str, str], Program]:
    """Compile a file of csrc/cuda for a compute capability.

    Args:
        name: of the file, without ".cu".
        cc: compute capability times ten.
        folder: for its files.

    Returns:
        Kernels by the name of their body and their data type, "" where they have none.

    Raises:
        PtxFault: an instruction is unknown.
    """
    nvcc, target = find_nvcc(), folder / f"{name}-{cc}.ptx"
    assert nvcc is not None
    command = [nvcc, "-ptx", "-std=c++17", f"-arch=compute_{cc}", f"-I{CSRC}", "-o", str(target)]
    command += [*_FLAGS.get(name, []), str(CSRC / "cuda" / f"{name}.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {}
    for mangled, kernel in parse(target.read_text()).items():
        match = _BODY.search(mangled)
        assert match is not None, mangled
        found[match["body"], _TYPES.get(match["type"] or "", "")] = compile_program(kernel)
    return found
