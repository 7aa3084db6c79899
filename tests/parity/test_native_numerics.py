"""Operations of the native target on values that low precision finds hard, beside torch's bf16."""

from __future__ import annotations

import pytest
from tolerances import TOLERANCES

from sdengine import _native
from sdengine.benchmarks.native_numerics import RULE, Hard, hard_cases, measure
from sdengine.benchmarks.native_tables import hard_values

_, FP32 = TOLERANCES["native hard values", "float32"]
_, INT8 = TOLERANCES["native hard values", "int8"]


@pytest.mark.parametrize("hard", [*hard_cases()], ids=lambda hard: f"{hard.case.name}, {hard.what}")
def test_hard_values(hard: Hard) -> None:
    row = measure(hard, threads=2)
    for errors in row["errors"].values():
        assert errors["native bf16"] <= RULE * errors["torch bf16"]
        assert errors["native fp32"] <= FP32
        assert errors.get("native int8", 0.0) <= INT8
    assert f"| {hard.what} |" in hard_values([row])


@pytest.mark.parametrize("isa", _native.instruction_sets())
def test_peaks_of_products(isa: str) -> None:
    for kind in ("float32", "bfloat16", "int16", "int8"):
        assert _native.peak_rate(kind, 1, isa) > 1e8
    with pytest.raises(ValueError, match="kind: 'int4' is not one of float32"):
        _native.peak_rate("int4", 1, isa)
