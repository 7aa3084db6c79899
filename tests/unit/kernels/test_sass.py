"""What machine code holds: counted right, and wide enough where kernels wait for memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from sdengine.kernels.sass import count

TEXT = """
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   LDG.E.128.CONSTANT R4, desc[UR4][R2.64] ;
        /*0020*/              @!P0 LDG.E.U16 R8, desc[UR4][R2.64] ;
.L_x_1:
        /*0030*/                   LDGSTS.E.BYPASS.128 [R6], desc[UR4][R2.64] ;
        /*0040*/                   NOP ;
.L_x_0:
        /*0050*/                   HMMA.16816.F32 R4, R4, R8, R4 ;
        /*0060*/                   MUFU.EX2 R7, R7 ;
        /*0070*/                   MUFU.RCP R7, R7 ;
        /*0080*/               @P0 BRA `(.L_x_0) ;
        /*0090*/               @P1 BRA `(.L_x_1) ;
        /*00a0*/               @P1 BRA `(.L_x_2) ;
        /*00b0*/                   STL [R1], R7 ;
        /*00c0*/                   STG.E.64 desc[UR4][R2.64], R4 ;
        /*00d0*/                   STG.E desc[UR4][R2.64], R4 ;
.L_x_2:
        /*00e0*/                   EXIT ;
.L_x_3:
        /*00f0*/                   BRA `(.L_x_3);
"""
# Compiles kernels of plugins as of a network of 512² and 768², whose maps are 64² and 96², or 8².
PROGRAM = """
import json
from dataclasses import asdict
from sdengine.kernels import group_norm
from sdengine.kernels.compiling import compile_kernel
from sdengine.kernels.group_norm_variants import paired_variants, single_variants
from sdengine.kernels.sass import ledger

found = {}
def note(name, specialisation):
    found[name] = asdict(ledger(compile_kernel(specialisation, 89).cubin))

for last in (False, True):
    shape = group_norm.GroupNormShape(1, 320, 9216, 32, last)
    for variant in paired_variants(shape):
        name = f"{variant.name} {'HWC8' if last else 'LINEAR'}"
        partial = group_norm.specialise_partial(shape, "float16", variant, 1024)
        apply = group_norm.specialise_apply(shape, "float16", variant, 1e-5, True, 1024)
        note(name + " partial", partial)
        note(name + " apply", apply)
small = group_norm.GroupNormShape(1, 1280, 64, 32)
for variant in single_variants(small):
    note(variant.name, group_norm.specialise(small, "float16", variant, 1e-5, True, 16))
note("odd", group_norm.specialise(small, "float16", variant, 1e-5, True, 1))
print(json.dumps(found))
"""


def test_instructions_are_counted() -> None:
    found = count(TEXT)
    assert (found.loads, found.stores) == ({2: 1, 16: 1}, {4: 1, 8: 1})
    assert found.async_copies == {16: 1}
    assert found.tensor_core == {"HMMA": 1}
    assert (found.exponentials, found.spills) == (1, 1)
    assert found.instructions == 15
    assert found.loop == 4  # that holds no other, and goes back to more than itself


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pytest.importorskip("triton", reason="triton is not installed: pip install triton (Linux)")
    folder = tmp_path_factory.mktemp("sass")
    cache = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | cache,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_plugins_of_group_norm_load_and_store_sixteen_bytes(plugins: dict[str, Any]) -> None:
    names = {name.split("_")[0] for name in plugins}
    assert names == {"split", "slab", "resident", "looped", "odd"}
    for name, found in plugins.items():
        assert found["spills"] == 0, name
        if name != "odd":
            assert found["loads"].get("16", 0) > 0, name
            # Besides the map, only scale and shift are read, or statistics, a number each.
            assert "partial" in name or found["stores"].keys() == {"16"}, name
    for name, found in plugins.items():
        if "partial" in name:
            assert found["loads"].keys() == {"16"}, name


def test_without_a_known_divisor_they_would_not(plugins: dict[str, Any]) -> None:
    assert "16" not in plugins["odd"]["loads"] and "16" not in plugins["odd"]["stores"]
