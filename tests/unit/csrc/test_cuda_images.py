"""Which GPUs the extension has code for, by what cuobjdump finds in it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from sdengine import _native
from sdengine.compilers.tensorrt.gpus import _BY_CAPABILITY

ROOT = Path(__file__).resolve().parents[3]


def covers(images: Iterable[int], intermediate: Iterable[int], capability: int) -> bool:
    """Say whether a GPU runs machine code or PTX, by their capabilities times ten.

    Machine code runs on the GPUs of its generation that are as late; PTX on all later ones.
    """
    own = any(c // 10 == capability // 10 and c <= capability for c in images)
    return own or any(c <= capability for c in intermediate)


def tool(name: str) -> str:
    """Find one of the toolkit's programs; triton's package has some of them."""
    found = shutil.which(name)
    triton = find_spec("triton")
    if found is None and triton is not None and triton.origin is not None:
        beside = Path(triton.origin).parent / "backends" / "nvidia" / "bin" / name
        found = str(beside) if beside.exists() else None
    if found is None:
        pytest.skip(f"{name} is not installed: it comes with a CUDA toolkit and with triton")
    return found


def images_in(path: Path) -> tuple[list[int], list[int]]:
    """Return the capabilities, times ten, of a file's machine code and of its PTX."""
    found = []
    for kind, suffix in (("-lelf", "cubin"), ("-lptx", "ptx")):
        command = [tool("cuobjdump"), kind, str(path)]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        # Not those that run on one chip only, as 100a.
        found.append([int(n) for n in re.findall(rf"\.sm_(\d+)\.{suffix}", listed)])
    return found[0], found[1]


@pytest.mark.parametrize(
    ("images", "intermediate", "capability", "covered"),
    [
        ([80, 86], [], 86, True),
        ([80, 86], [], 89, True),
        ([80, 86], [], 90, False),
        ([80], [80], 90, True),
        ([80], [80], 75, False),  # what was built before 7.5 was in the list
        ([86], [], 80, False),
        ([100], [], 103, True),
        ([100], [], 120, False),
    ],
)
def test_what_runs_where(
    images: list[int], intermediate: list[int], capability: int, covered: bool
) -> None:
    assert covers(images, intermediate, capability) == covered


@pytest.mark.slow
def test_every_known_gpu_has_code(tmp_path: Path) -> None:
    """Of the extension as installed, or of one of its sources as CMake compiles it."""
    path = Path(_native.__file__)
    if _native.build_info()["cuda"] is None:
        path = compiled(tmp_path)
    images, intermediate = images_in(path)
    for capability in _BY_CAPABILITY:
        assert covers(images, intermediate, capability), f"no code for {capability} in {path}"
    assert min(intermediate) == 75


def compiled(folder: Path) -> Path:
    """Compile csrc/cuda/noise.cu with the flags of the extension; return its object."""
    tool("nvcc")
    cmake, ninja = (shutil.which(n, path=str(Path(sys.executable).parent)) for n in TOOLS)
    if cmake is None or ninja is None:
        pytest.skip("cmake or ninja is not installed: pip install cmake ninja")
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DSDENGINE_CUDA=ON"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DSDENGINE_PYTHON=OFF"]
    subprocess.run(configure, check=True, capture_output=True)
    built = "CMakeFiles/sdengine_cuda.dir/csrc/cuda/noise.cu.o"
    subprocess.run([ninja, "-C", str(folder), built], check=True, capture_output=True)
    return folder / built


TOOLS = ("cmake", "ninja")
