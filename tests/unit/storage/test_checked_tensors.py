"""Checked tensor files: no damage is ever mapped, and what is sound is read through once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from sdengine.errors import BundleError
from sdengine.storage import checked_tensors
from sdengine.storage.checked_tensors import map_checked, write_checked
from sdengine.storage.tensor_file import Array, Kinds

KINDS: Kinds = {"a": ("U8", (5000,)), "b": ("F32", (30, 10)), "none": ("F32", (0,))}
TENSORS: dict[str, Array] = {
    "a": np.arange(5000).astype(np.uint8),
    "b": np.linspace(0, 1, 300, dtype=np.float32).reshape(30, 10),
    "none": np.zeros(0, np.float32),
}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "cache"))
    write_checked(tmp_path / "a.weights", KINDS, [*TENSORS.items()][::-1], "me")
    return tmp_path / "a.weights"


def test_tensors_are_mapped_as_they_were_written(path: Path) -> None:
    found = map_checked(path, KINDS, "me")
    assert found.keys() == TENSORS.keys()
    assert all(np.array_equal(found[name], TENSORS[name]) for name in TENSORS)


def test_any_damage_is_found(path: Path) -> None:
    whole = path.read_bytes()
    map_checked(path, KINDS, "me")  # it is known to be sound from now on
    places = [0, 9, 60, *range(64, len(whole), 97), len(whole) - 1]
    damaged = [whole[:p] + bytes([whole[p] ^ 1]) + whole[p + 1 :] for p in places]
    half = len(whole) // 2
    damaged += [whole[:half] + bytes(len(whole) - half), whole[:-1], whole + b"\0", b"", whole[:9]]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(BundleError, match=r"a\.weights"):
            map_checked(path, KINDS, "me")
    path.write_bytes(whole)
    map_checked(path, KINDS, "me")


def test_only_who_asks_for_them_gets_them(path: Path) -> None:
    with pytest.raises(BundleError, match="header"):
        map_checked(path, KINDS, "another")
    with pytest.raises(BundleError, match="header"):
        map_checked(path, {**KINDS, "a": ("U8", (5001,))}, "me")


def test_a_version_is_read_through_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[Path] = []
    check = checked_tensors._check

    def count(path: Path, *others: object) -> None:
        checked.append(path)
        check(path, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(checked_tensors, "_check", count)
    for _ in range(3):
        map_checked(path, KINDS, "me")
    assert len(checked) == 1
    os.utime(path)
    map_checked(path, KINDS, "me")
    assert len(checked) == 2


def test_a_file_that_is_made_again_leaves_what_is_mapped(path: Path) -> None:
    found = map_checked(path, KINDS, "me")
    inode = path.stat().st_ino
    others = {name: np.zeros_like(tensor) for name, tensor in TENSORS.items()}
    write_checked(path, KINDS, others.items(), "me")
    assert path.stat().st_ino != inode
    assert all(np.array_equal(found[name], TENSORS[name]) for name in TENSORS)


def test_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((tmp_path / "b").exists()))
    write_checked(tmp_path / "b", KINDS, TENSORS.items(), "me")
    assert synced == [False]
