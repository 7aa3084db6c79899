"""PTX of the shipped kernels, read by the oldest CUDA's assembler as that CUDA's driver would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.oldest_cuda import assemble, oldest_ptxas

from sdengine.compilers.tensorrt.gpus import CAPABILITIES
from sdengine.kernels.ptx import OLDEST_DRIVERS_PTX, version_of_cuda, version_written

pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")

PROGRAM = Path(__file__).parents[2] / "support" / "compile_shipped.py"


def check(cc: int, folder: Path, *words: str) -> None:
    """Compile for a capability; every file must be readable, and be for that very GPU."""
    ptxas = oldest_ptxas()
    cache = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(PROGRAM), str(folder), str(cc), *words]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | cache
    )
    assert done.returncode == 0, done.stderr
    files = sorted(folder.glob("*.ptx"))
    assert files
    for path in files:
        text = path.read_text()
        major, minor = re.findall(r"^\.version (\d+)\.(\d+)$", text, re.MULTILINE)[0]
        assert 10 * int(major) + int(minor) <= OLDEST_DRIVERS_PTX, path.name
        (target,) = re.findall(r"^\.target (sm_\d+a?)\b", text, re.MULTILINE)
        assert target.rstrip("a") == f"sm_{cc}", path.name
        # With an "a", a driver reads it on that very chip only.
        status, said = assemble(ptxas, path, target)
        assert status == 0, f"{path.name}: {said}"


@pytest.mark.parametrize("cc", CAPABILITIES)
def test_the_oldest_driver_reads_plugins_of_every_gpu(cc: int, tmp_path: Path) -> None:
    """Attention on every GPU; both plugins on the oldest, one between and the newest."""
    check(cc, tmp_path, *(("CLIP", "SD1.5 512², 8²") if cc in (75, 90, 120) else ("CLIP",)))


def test_the_oldest_driver_reads_every_variant(tmp_path: Path) -> None:
    """On one GPU; hundreds of variants for each of the others take minutes."""
    check(75, tmp_path)


def test_newer_ptx_is_refused_by_it(tmp_path: Path) -> None:
    """What the limit is for: if the assembler took it, the check above would say nothing."""
    path = tmp_path / "kernel.ptx"
    path.write_text(".version 9.4\n.target sm_90a\n.address_size 64\n")
    status, said = assemble(oldest_ptxas(), path, "sm_90a")
    assert status != 0 and "Unsupported .version 9.4" in said


@pytest.mark.parametrize(
    ("cuda", "ptx"),
    [(11080, 78), (12000, 80), (12050, 85), (12060, 85), (12090, 88), (13000, 90), (13040, 94)],
)
def test_version_of_cuda(cuda: int, ptx: int) -> None:
    assert version_of_cuda(cuda) == ptx


def test_version_is_limited_by_the_driver_and_by_triton() -> None:
    assert version_written(80, 999) < OLDEST_DRIVERS_PTX < version_written(120, 999)
    for cc in CAPABILITIES:
        assert version_written(cc) == min(OLDEST_DRIVERS_PTX, version_written(cc, 999))
        assert version_written(cc, 84) == 84
