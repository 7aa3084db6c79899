"""Files of TensorRT's measurements: what is used, what is not and why, what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdengine.backends.cache_file import Key, Loaded
from sdengine.compilers.tensorrt import timing_cache
from sdengine.compilers.tensorrt.timing_cache import load, save

KEY = Key("11.4.0", "NVIDIA GeForce RTX 4090", 89)


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.cache"
    assert load(path, KEY) == Loaded()
    for content in (b"\n\x00measured\n", b"more"):
        save(path, KEY, content)
        assert load(path, KEY) == Loaded(content)
    assert os.listdir(path.parent) == ["a.cache"]


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (Key("11.5.0", KEY.gpu, 89), "TensorRT 11.4.0 on NVIDIA GeForce RTX 4090 (8.9), and this"),
        (Key("11.4.0", "NVIDIA L4", 89), "this is TensorRT 11.4.0 on NVIDIA L4 (8.9)"),
        (Key("11.4.0", KEY.gpu, 120), "(12.0)"),
    ],
)
def test_measurements_of_others_are_not_used(tmp_path: Path, key: Key, told: str) -> None:
    save(tmp_path / "a", KEY, b"measured")
    found = load(tmp_path / "a", key)
    assert (found.content, found.replaceable) == (b"", True)
    assert told in found.reason


def test_a_damaged_file_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "a"
    save(path, KEY, b"measured")
    whole = path.read_bytes()
    start = len(b"sdengine timing cache 1\n")
    damaged = [whole[:end] for end in range(start, len(whole))]
    damaged += [whole + b"x", whole[:-1] + b"!", whole[:start] + b"[]\n", whole[:start] + b"{}\n"]
    for content in damaged:
        path.write_bytes(content)
        found = load(path, KEY)
        assert (found.content, found.reason, found.replaceable) == (b"", "it is damaged", True)


@pytest.mark.parametrize("content", [b"precious", b"sdengine timing cache 2\n{}\n"])
def test_a_file_of_another_kind_is_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    found = load(tmp_path / "a", KEY)
    assert (found.content, found.replaceable) == (b"", False)
    assert "no timing cache of sdengine" in found.reason
    assert not load(tmp_path, KEY).replaceable


def test_kept_files_are_named_by_what_they_hold_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))
    path = timing_cache.cache_path(KEY)
    assert path == tmp_path / "tensorrt/timing-11.4.0-nvidia-geforce-rtx-4090-sm89.cache"
    hostile = timing_cache.cache_path(Key("../../x", "../../../etc", 89))
    assert hostile.parent == path.parent
    save(path, KEY, b"measured")
    assert [file.path for file in timing_cache.KEPT.files()] == [path]
