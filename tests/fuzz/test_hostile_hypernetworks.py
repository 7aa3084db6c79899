"""Hostile files of hypernetworks: a typed error or networks, and nothing else."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sdengine.benchmarks.seeded_hypernetworks import write
from sdengine.errors import CheckpointError
from sdengine.inputs.hypernetworks import read_hypernetwork

SETTINGS = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path, _ = write(tmp_path_factory.mktemp("nets") / "a.pt", [8], activation="relu", norm=True)
    return path.read_bytes()


def read(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    try:
        found = read_hypernetwork(path)
    except CheckpointError:
        return
    for width in found.networks:
        x = np.ones((1, 2, width), np.float32)
        assert all(one.shape == x.shape for one in found.added_to(x, x))


@SETTINGS
@given(data=st.data())
def test_changed_and_cut_bytes(tmp_path: Path, content: bytes, data: Any) -> None:
    changed = bytearray(content)
    for place in data.draw(st.lists(st.integers(0, len(changed) - 1), min_size=1, max_size=6)):
        changed[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    read(tmp_path / "a.pt", bytes(changed[:end]))


def test_nothing_of_a_file_is_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "made"),)

    (tmp_path / "a.pt").write_bytes(pickle.dumps({768: (Bomb(), Bomb())}))
    with pytest.raises(CheckpointError):
        read_hypernetwork(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()


def test_tensors_that_share_their_numbers(tmp_path: Path) -> None:
    """Copies of one matrix for each layer would take many times what the file does."""
    import torch

    matrix, row = torch.zeros(64, 64), torch.zeros(64)
    state = {
        f"linear.{i}.{n}": t for i in range(20) for n, t in (("weight", matrix), ("bias", row))
    }
    torch.save({64: (state, state), "layer_structure": [1.0] * 21}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"a\.pt: its tensors claim more numbers than it"):
        read_hypernetwork(tmp_path / "a.pt")
