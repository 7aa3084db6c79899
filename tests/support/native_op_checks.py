"""Inputs for operations of the native CPU runtime, and what their outputs are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tolerances import assert_close

from sdengine import _native
from sdengine.storage.tensor_file import to_bf16_bits, to_float32

ISAS = _native.instruction_sets()
DTYPES = ("float32", "bfloat16")
# Of torch's own error at the same precision, at most so much.
RULE = 2.0


def draw(seed: int, *shape: int, dtype: str = "float32", scale: float = 1.0) -> Any:
    """Return normal numbers that the data type holds exactly."""
    values = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32) * scale
    return to_float32(to_bf16_bits(values)) if dtype == "bfloat16" else values


def wide(values: Any) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, np.float64))


def image(values: Any) -> torch.Tensor:
    """[n,h,w,c] as torch's [n,c,h,w]."""
    return wide(values).permute(0, 3, 1, 2)


def rows(values: torch.Tensor) -> torch.Tensor:
    return values.permute(0, 2, 3, 1)


def rms(found: Any, truth: torch.Tensor) -> float:
    error = wide(found) - truth
    return float((error.square().mean() / truth.square().mean()).sqrt())


def check(op: str, dtype: str, found: Any, truth: torch.Tensor, torchs: torch.Tensor) -> None:
    """Compare with the truth, and with torch's own result in bf16."""
    assert_close(op, dtype, found, truth)
    if dtype == "bfloat16":
        assert torchs.dtype == torch.bfloat16
        assert rms(found, truth) <= RULE * rms(torchs.double().numpy(), truth)
