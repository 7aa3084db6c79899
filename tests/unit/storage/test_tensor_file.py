"""Files of tensors, and bf16 as its bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sdengine.storage.tensor_file import (
    map_tensors,
    tensor_bytes,
    to_bf16_bits,
    to_float32,
    write_tensors,
)


def test_bf16_is_read_as_its_bits(tmp_path: Path) -> None:
    bits = np.array([0x3F80, 0xC000, 0x7F80], np.uint16)
    write_tensors(tmp_path / "a", {"x": ("BF16", (3,))}, [("x", bits)])
    assert to_float32(map_tensors(tmp_path / "a")["x"]).tolist() == [1.0, -2.0, np.inf]


def test_an_unfinished_file_leaves_nothing(tmp_path: Path) -> None:
    kinds = {"x": ("F32", (2,)), "y": ("F32", (2,))}
    ones = np.ones(2, np.float32)
    with pytest.raises(ValueError, match="not given: y"):
        write_tensors(tmp_path / "a", kinds, [("x", ones)])
    with pytest.raises(ValueError, match="12 bytes for 8"):
        write_tensors(tmp_path / "a", kinds, [("x", np.ones(3, np.float32))])
    assert not list(tmp_path.iterdir())


def test_bf16_is_rounded_as_torch_does() -> None:
    patterns = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32)
    ties = (np.arange(1 << 16, dtype=np.uint32) << 16) | 0x8000
    values = np.concatenate([patterns, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).bfloat16().view(torch.uint16).numpy()
    assert np.array_equal(to_bf16_bits(values), expected)


def test_a_nan_stays_one_in_bf16() -> None:
    # These bits would round to infinity, to zero and to minus zero.
    bits = np.array([0x7F800001, 0xFFFFFFFF, 0x7FFFFFFF, 0x7FC00000], np.uint32)
    assert np.isnan(to_float32(to_bf16_bits(bits.view(np.float32)))).all()


def test_the_bytes_of_a_tensor_follow_from_its_kind() -> None:
    found = [tensor_bytes(kind, (3, 5)) for kind in ("U8", "BF16", "F16", "F32", "I32")]
    assert found == [15, 30, 30, 60, 60]
