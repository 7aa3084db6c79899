"""Tensor files: what the safetensors package reads of ours, and we of its; bf16 as its bits."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdengine.checkpoints.weights import save_stream, save_tensors
from sdengine.errors import BundleError
from sdengine.storage.tensor_file import (
    map_tensors,
    tensor_bytes,
    to_bf16_bits,
    to_float32,
    write_tensors,
)

STATE = {
    "b": torch.linspace(-2, 2, 6).reshape(2, 3),
    "a": torch.tensor([1.0, float("inf"), -0.5]).to(torch.bfloat16),
    "c": torch.tensor(0.25, dtype=torch.float16),
    "none": torch.empty(0, 4),
}


def test_the_package_reads_what_we_write(tmp_path: Path) -> None:
    save_tensors(STATE, tmp_path / "ours.safetensors")
    read = load_file(tmp_path / "ours.safetensors")
    assert read.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor)
    with safe_open(tmp_path / "ours.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_we_map_what_the_package_writes(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    mapped = map_tensors(tmp_path / "theirs.safetensors")
    assert mapped.keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert np.array_equal(to_float32(mapped[name]), tensor.float().numpy())


def test_tensors_may_come_in_any_order_but_all_of_them(tmp_path: Path) -> None:
    kinds = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in STATE.items()}
    backwards = [*STATE.items()][::-1]
    save_stream(tmp_path / "a", kinds, backwards)
    assert torch.equal(load_file(tmp_path / "a")["b"], STATE["b"])
    with pytest.raises(ValueError, match="not given: b"):
        save_stream(tmp_path / "b", kinds, backwards[:-1])
    assert not (tmp_path / "b").exists()


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


@pytest.mark.parametrize("shape", [[1] * 40, [9] * 1_000_000, [0, 1 << 59, 1 << 59]])
def test_shapes_that_no_array_can_have_are_refused(tmp_path: Path, shape: list[int]) -> None:
    # The product of a million sides takes minutes.
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 if shape[0] else 0]}
    header = json.dumps({"x": entry}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 if shape[0] else 0))
    with pytest.raises(BundleError, match="the entry of tensor 'x' is malformed"):
        map_tensors(path)
