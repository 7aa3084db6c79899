"""Kernels compiled for GPUs that need not be there, in a process that does not interpret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")

CHECK = """
import json
from sdengine.errors import EngineBuildError
from sdengine.kernels import attention, group_norm
from sdengine.kernels.compiling import compile_kernel
from sdengine.kernels.ptx import parse_entry
from sdengine.kernels.registry import choose

shape = attention.AttentionShape(2, 8, 4096, 77, 40)
found = {}
for dtype in ("float16", "bfloat16"):
    variant = choose("attention", shape, dtype, 80)
    one = compile_kernel(attention.specialise(shape, dtype, variant), 80)
    found[dtype] = [
        one.threads, one.spill_bytes, "bf16.bf16.f32" in one.ptx, "f16.f16.f32" in one.ptx,
        [bits for _, bits in parse_entry(one.ptx).parameters], one.ptx.count("cp.async.cg"),
    ]
old = compile_kernel(attention.specialise(shape, "float16", variant, unit=8), 89, ptx_version=80)
found["version"] = old.ptx[old.ptx.index(".version"):][:12]
turing = compile_kernel(attention.specialise(shape, "float16", variant), 75)
found["turing"] = "mma.sync" in turing.ptx
large = group_norm.GroupNormShape(2, 320, 4096, 32, residual=True)
split = choose("group_norm_silu", large, "float16", 89)
partial = compile_kernel(group_norm.specialise_partial(large, "float16", split), 89)
found["partial"] = [bits for _, bits in parse_entry(partial.ptx).parameters]
try:
    broken = group_norm.Variant("broken", {"BLOCK_P": 3, "CHUNK_P": 6}, 4, 1, 0)
    compile_kernel(group_norm.specialise_partial(large, "float16", broken), 89)
except EngineBuildError as error:
    found["broken"] = str(error)
print(json.dumps(found))
"""


def run(command: list[str], cwd: Path) -> str:
    """Run Python with kernels compiled; elsewhere, so that it finds the installed package."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cwd / "cache")}
    done = subprocess.run(
        [sys.executable, *command], cwd=cwd, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = run(["-c", CHECK], tmp_path_factory.mktemp("compiled"))
    return dict(json.loads(output.splitlines()[-1]))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_attention_uses_tensor_cores_and_wide_copies(found: dict[str, Any], dtype: str) -> None:
    threads, spill_bytes, is_bf16, is_fp16, parameters, wide_copies = found[dtype]
    assert threads == 128
    assert spill_bytes == 0
    assert (is_fp16, is_bf16) == ((True, False) if dtype == "float16" else (False, True))
    assert parameters == [64] * 3 + [32] * 14 + [64]
    assert wide_copies > 0  # 16 bytes each: rows of 40 numbers are known to be aligned


def test_turing_has_no_tensor_core_products(found: dict[str, Any]) -> None:
    """Why attention refuses it: when this fails, the refusal can go."""
    assert not found["turing"]


def test_version_of_ptx_can_be_lowered(found: dict[str, Any]) -> None:
    assert found["version"] == ".version 8.0"


def test_absent_arguments_are_no_parameters(found: dict[str, Any]) -> None:
    assert found["partial"] == [64, 64, 32, 64]  # x, residual, positions, partials


def test_what_does_not_compile_says_so(found: dict[str, Any]) -> None:
    assert found["broken"].startswith("group_norm.group_norm_partial_kernel does not compile for")


def test_resource_table(tmp_path: Path) -> None:
    arguments = ["--targets=75,121", "--dtypes=float16", "--cases=16²", f"--output={tmp_path}"]
    output = run(["-m", "sdengine.benchmarks.kernel_resources", *arguments], tmp_path)
    record = json.loads((tmp_path / "kernel-resources.json").read_text())
    rows = record["resources"]
    assert {row["cc"] for row in rows if row["op"] == "layer_norm"} == {75, 121}
    assert {row["cc"] for row in rows if row["op"] == "attention"} == {121}
    assert all(row["spill_bytes"] == 0 and row["warps_per_sm"] > 0 for row in rows)
    for row in rows:
        sass = row["sass"]
        assert sass["spills"] == 0 and sass["loop"] < sass["instructions"]
        assert row["op"] == "geglu" or max(map(int, sass["loads"])) == 16, row["variant"]
        if row["op"] == "attention":
            assert sass["tensor_core"]["HMMA"] and sass["exponentials"] and sass["loop"]
            assert bool(sass["async_copies"]) == row["variant"].endswith("s2")
    refused = [case["bound"]["7.5"] for case in record["cases"] if case["op"] == "attention"]
    assert refused
    assert all(bound.startswith("not supported: ") for bound in refused)
    assert output.strip() == (tmp_path / "kernel-resources.md").read_text().strip()


def test_interpreting_process_does_not_compile(tmp_path: Path) -> None:
    code = (
        "from sdengine.kernels import geglu\n"
        "from sdengine.kernels.compiling import compile_kernel\n"
        "shape = geglu.GegluShape(4, 8)\n"
        "compile_kernel(geglu.specialise(shape, 'float16', geglu.VARIANTS[0]), 89)\n"
    )
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert "ConfigError: TRITON_INTERPRET: is set" in done.stderr
