"""Tensor files: what the safetensors package reads of ours, and we of its."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sdengine.checkpoints.weights import save_stream, save_tensors
from sdengine.storage.tensor_file import map_tensors, to_float32

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
