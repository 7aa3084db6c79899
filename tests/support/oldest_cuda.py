"""The assembler of the oldest CUDA whose drivers must read our PTX, where one is installed."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

RELEASE = "13.0"


def oldest_ptxas() -> Path:
    """Return `ptxas` of CUDA 13.0, from a toolkit or the package nvidia-cuda-nvcc; else skip."""
    for path in _places():
        if path.is_file():
            said = subprocess.run([path, "--version"], capture_output=True, text=True).stdout
            if f"release {RELEASE}," in said:
                return path
    pytest.skip(f"no ptxas of CUDA {RELEASE}: pip install 'nvidia-cuda-nvcc=={RELEASE}.*'")


def _places() -> Iterator[Path]:
    package = importlib.util.find_spec("nvidia")
    for folder in () if package is None else package.submodule_search_locations or ():
        yield Path(folder, "cu13", "bin", "ptxas")
    if found := shutil.which("ptxas"):
        yield Path(found)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if name in os.environ:
            yield Path(os.environ[name], "bin", "ptxas")
    yield from (Path(f"/usr/local/cuda{end}/bin/ptxas") for end in (f"-{RELEASE}", ""))


def assemble(ptxas: Path, source: Path, gpu: str) -> tuple[int, str]:
    """Assemble a file for exactly one GPU; return the exit status and what was said."""
    output = source.with_suffix(".cubin")
    command = [str(ptxas), f"--gpu-name={gpu}", str(source), "--output-file", str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stderr
