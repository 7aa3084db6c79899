"""The cache of exports: whole entries, damaged ones, room, and what it says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from sdengine.errors import ExportError, OutputError
from sdengine.export import cache
from sdengine.export.cache import RECORD_FILE, OnnxCache, Record, make_key, open_cache
from sdengine.storage.cache_place import (
    CACHE_VARIABLE,
    LIMIT_VARIABLE,
    cache_dir,
    say_not_kept,
)
from sdengine.storage.content_hash import sha256_of

KEY = "0" * 64


def fill(folder: Path) -> Record:
    (folder / "unet.onnx").write_bytes(b"graph")
    (folder / "unet.onnx.data").write_bytes(b"weights")
    return Record(
        checkpoint="tiny", network="unet", precision="fp32", max_error={"unet.onnx": 1e-6}
    )


def test_an_entry_is_found_again_as_it_was_written(tmp_path: Path) -> None:
    cache = OnnxCache(tmp_path / "new" / "cache")
    assert cache.find(KEY) is None and cache.entries() == [] and cache.clear() == 0
    added = cache.add(KEY, fill, 12)
    assert cache.find(KEY) == added
    assert added.size_bytes == 12
    assert added.record.max_error == {"unet.onnx": 1e-6}
    assert [entry.record for entry in cache.entries()] == [added.record]
    assert os.listdir(cache.folder) == [KEY]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("unet.onnx.data", b"weightS"),
        ("unet.onnx.data", b"weight"),
        ("unet.onnx.data", None),
        (RECORD_FILE, b"{"),
        (RECORD_FILE, b'{"network": 3}'),
        (RECORD_FILE, None),
    ],
)
def test_a_damaged_entry_is_not_used(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = OnnxCache(tmp_path).add(KEY, fill, 12).folder / name
    cache = OnnxCache(tmp_path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert cache.find(KEY) is None
    assert not path.parent.exists()
    assert cache.find(KEY) is None
    assert cache.add(KEY, fill, 12) == cache.find(KEY)


def test_weights_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    OnnxCache(tmp_path).add(KEY, fill, 12)
    hashed: list[str] = []

    def count(path: Path) -> str:
        hashed.append(path.name)
        return sha256_of(path)

    monkeypatch.setattr("sdengine.export.cache.sha256_of", count)
    cache = OnnxCache(tmp_path)
    assert cache.find(KEY) == cache.find(KEY)
    assert sorted(hashed) == ["unet.onnx", "unet.onnx.data"]


def test_a_record_names_no_file_outside_its_entry(tmp_path: Path) -> None:
    path = OnnxCache(tmp_path).add(KEY, fill, 12).folder / RECORD_FILE
    record = json.loads(path.read_text())
    record["files"][0]["path"] = "../outside"
    path.write_text(json.dumps(record))
    assert OnnxCache(tmp_path).find(KEY) is None


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    cache = OnnxCache(tmp_path)

    def fail(folder: Path) -> Record:
        fill(folder)
        raise ExportError("no")

    with pytest.raises(ExportError):
        cache.add(KEY, fail, 12)
    assert os.listdir(tmp_path) == []
    entry = cache.add(KEY, fill, 12)

    def fail_later(path: Path) -> float:
        path.write_bytes(b"half")
        raise ExportError("no")

    with pytest.raises(ExportError):
        cache.extend(entry, "unet.1x64x64.onnx", fail_later)
    assert cache.find(KEY) == entry
    assert sorted(os.listdir(entry.folder)) == [RECORD_FILE, "unet.onnx", "unet.onnx.data"]


def test_graphs_are_added_to_an_entry(tmp_path: Path) -> None:
    cache = OnnxCache(tmp_path)
    entry = cache.add(KEY, fill, 12)

    def add(path: Path) -> None:
        path.write_bytes(b"more")

    for _ in range(2):  # the second replaces the first
        entry = cache.extend(entry, "unet.1x64x64.onnx", add)
        assert cache.find(KEY) == entry
        assert entry.record.max_error == {"unet.onnx": 1e-6, "unet.1x64x64.onnx": None}
        assert entry.size_bytes == 16


def test_whoever_is_first_wins(tmp_path: Path) -> None:
    cache = OnnxCache(tmp_path)

    def fill_while_another_does(folder: Path) -> Record:
        OnnxCache(tmp_path).add(KEY, fill, 12)
        return fill(folder)

    assert cache.add(KEY, fill_while_another_does, 12) == cache.find(KEY)
    assert os.listdir(tmp_path) == [KEY]


def test_says_what_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutputError, match=r"needs about 1000000\.0 GB.*sdengine cache --clear"):
        OnnxCache(tmp_path).add(KEY, fill, 10**15)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=f"cannot be written.*{CACHE_VARIABLE}"):
        OnnxCache(tmp_path / "file").add(KEY, fill, 12)


def test_clearing_removes_what_interruptions_left(tmp_path: Path) -> None:
    cache = OnnxCache(tmp_path)
    cache.add(KEY, fill, 12)
    (tmp_path / ".half").mkdir()
    (tmp_path / ".half" / "unet.onnx.data").write_bytes(b"weig")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "mine").write_bytes(b"")
    (tmp_path / "link").symlink_to(outside)
    assert cache.clear() > 12 + 4
    assert (outside / "mine").exists()
    assert cache.entries() == []
    shutil.rmtree(outside)


def test_what_was_used_longest_ago_gives_way_but_nothing_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    keys = [f"{n}" * 64 for n in range(4)]
    for used, key in enumerate(keys):
        os.utime(OnnxCache().add(key, fill, 12).folder, (used, used))
    with open_cache(kept=True, beside=tmp_path / "bundle") as cache:
        assert cache.find(keys[0]) is not None
        os.utime(cache.folder / keys[0], (0, 0))
        monkeypatch.setenv(LIMIT_VARIABLE, "36")  # three of 12 bytes
        OnnxCache().make_room(12)
        assert sorted(os.listdir(cache.folder)) == [keys[0], keys[3]]
        assert OnnxCache().clear() > 12
        assert os.listdir(cache.folder) == [keys[0]]  # a build goes on with what it found
        cache.add(keys[1], fill, 10**9)  # also where it exceeds the limit
        monkeypatch.setenv(LIMIT_VARIABLE, "1")
    assert os.listdir(cache.folder) == []


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    cache = OnnxCache(tmp_path)
    entry = cache.add(KEY, fill, 12)
    left = [tmp_path / f".{KEY}.1234abcd.sdengine", entry.folder / ".a.onnx.1234abcd.sdengine"]
    left[0].mkdir()
    for path in (left[0] / "unet.onnx.data", left[1]):
        path.write_bytes(b"half")
    assert sorted(cache.leftovers()) == sorted(left)

    def add(path: Path) -> None:
        path.write_bytes(b"more")

    cache.extend(entry, "a.onnx", add)
    assert cache.leftovers() == [left[0]]
    cache.add("1" * 64, fill, 12)
    assert cache.leftovers() == []
    assert sorted(os.listdir(tmp_path)) == [KEY, "1" * 64]


@pytest.mark.parametrize("lack", ["home", "folder"])
def test_exports_are_made_for_once_where_none_can_be_kept(
    lack: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    say_not_kept.cache_clear()
    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, "" if lack == "home" else "/proc/sdengine")
    with open_cache(kept=True, beside=tmp_path / "bundle") as cache:
        assert cache.find(KEY) is None
        assert cache.add(KEY, fill, 12) == cache.find(KEY)
    assert os.listdir(tmp_path) == []
    (told,) = [record.message for record in caplog.records]
    assert "exported networks cannot be kept" in told
    assert OnnxCache().find(KEY) is None and OnnxCache().entries() == []


def test_keys_depend_on_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    before = make_key({"a": 1, "b": 2})
    assert before == make_key({"b": 2, "a": 1})
    assert before != make_key({"a": 1, "b": 3})
    monkeypatch.setattr("sdengine.export.cache._code_sha256", lambda: "another release")
    assert before != make_key({"a": 1, "b": 2})


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "named"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir("onnx") == tmp_path / "named/onnx"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert cache_dir("onnx") == tmp_path / "xdg/sdengine/onnx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # is to be passed over
    assert cache_dir("bench") == tmp_path / ".cache/sdengine/bench"


def test_a_cache_for_once_is_gone_afterwards(tmp_path: Path) -> None:
    with open_cache(kept=False, beside=tmp_path / "bundle") as cache:
        cache.add(KEY, fill, 12)
        assert cache.folder.parent == tmp_path
    assert os.listdir(tmp_path) == []


def test_the_code_that_decides_how_a_graph_looks_is_found() -> None:
    for pattern in cache._CODE:
        assert list(cache._PACKAGE.glob(pattern)), pattern
