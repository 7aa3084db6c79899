"""Kept files: which are listed, which are removed, and what `sdengine cache` shows of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sdengine.backends import kernel_choices
from sdengine.backends.native import packed_cache
from sdengine.backends.tensorrt import runtime_cache
from sdengine.cli.main import main
from sdengine.compilers.tensorrt import timing_cache
from sdengine.storage.cache_files import CacheFile, CacheFiles

KINDS = {
    "packed": (packed_cache.KEPT, "unet-0123.weights", "packed weights of unet"),
    "timings": (timing_cache.KEPT, "timing-11.4-a-gpu-sm89.cache", "timing-11.4-a-gpu-sm89"),
    "kernels": (runtime_cache.KEPT, "runtime-1.7-a-gpu-sm89-ab.cache", "runtime-1.7-a-gpu-sm89-ab"),
    "choices": (kernel_choices.KEPT, "choices-3.9-a-gpu.cache", "triton's choices-3.9-a-gpu"),
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path))
    return tmp_path


def fill(kept: CacheFiles, name: str, size_bytes: int = 3, used: float = 0.0) -> Path:
    path = kept.folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size_bytes))
    os.utime(path, (used, used))
    return path


def test_files_are_listed_by_their_last_use(place: Path) -> None:
    kept = CacheFiles("things", "*.thing")
    assert (kept.folder, kept.files(), kept.clear()) == (place / "things", [], 0)
    old, new, middle = (
        fill(kept, f"{name}.thing", size, used)
        for name, size, used in (("a", 1, 100.0), ("b", 2, 300.0), ("c", 4, 200.0))
    )
    assert kept.files() == [
        CacheFile(new, 2, 300.0),
        CacheFile(middle, 4, 200.0),
        CacheFile(old, 1, 100.0),
    ]
    assert kept.clear() == 7
    assert os.listdir(kept.folder) == []


def test_only_files_of_the_kind_are_touched(place: Path) -> None:
    kept = CacheFiles("things", "a-*.thing")
    fill(kept, "a-1.thing")
    left = fill(kept, ".a-1.thing.x8f2", 5)  # by a writer that was killed
    assert [file.path for file in kept.leftovers()] == [left]
    others = [fill(kept, name) for name in ("b-1.thing", "a-1.other", ".b-1.thing.x8f2")]
    outside = place / "precious"
    outside.write_text("precious")
    (kept.folder / "a-link.thing").symlink_to(outside)
    (kept.folder / "a-folder.thing").mkdir()
    assert [file.path.name for file in kept.files()] == ["a-1.thing"]
    assert kept.clear() == 3 + 5
    assert outside.exists() and all(path.exists() for path in others)
    assert len(os.listdir(kept.folder)) == len(others) + 2


def test_a_file_that_another_process_removed_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = CacheFiles("things", "*.thing")
    gone, there = fill(kept, "a.thing"), fill(kept, "b.thing", 5)
    look = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path == gone:
            raise FileNotFoundError(path)
        return look(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert [file.path for file in kept.files()] == [there]
    assert kept.clear() == 5


def test_kinds_do_not_take_each_others_files() -> None:
    for kind, (kept, name, _) in KINDS.items():
        path = fill(kept, name)
        found = {other: [file.path for file in KINDS[other][0].files()] for other in KINDS}
        assert found == {other: [path] if other == kind else [] for other in KINDS}
        assert kept.clear() == 3


def test_the_command_lists_and_removes_every_kind(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = {kind: fill(kept, name, 10**5) for kind, (kept, name, _) in KINDS.items()}
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    for _, _, text in KINDS.values():
        assert f"  0.1 MB  {text}\n" in shown.replace("TensorRT's ", "")
    assert f"{place}: 0.4 MB in 4 entries" in shown
    assert main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["entries"] == []
    for kind, path in paths.items():
        assert listed[kind] == [{"path": str(path), "size_bytes": 10**5}]
    assert main(["cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == 4 * 10**5
    assert not any(path.exists() for path in paths.values())


def test_the_command_shows_the_limit_and_what_killed_writers_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [
        fill(packed_cache.KEPT, ".unet-0123.weights.1234abcd.sdengine", 10**5),
        fill(CacheFiles("onnx", "*"), ".ab.1234abcd.sdengine", 10**5),
    ]
    monkeypatch.setenv("SDENGINE_CACHE_LIMIT", "3GiB")
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("left by a process that was killed") == 2
    assert "0.2 MB in 2 entries, at most 3.0 GiB of each kind" in shown
    assert main(["cache", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["limit_bytes"] == 3 << 30
    assert {(f["path"], f["size_bytes"]) for f in listed["leftovers"]} == {
        (str(path), 10**5) for path in left
    }
    assert main(["cache", "--clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["freed_bytes"] == 2 * 10**5
    monkeypatch.setenv("SDENGINE_CACHE_LIMIT", "plenty")
    assert main(["cache"]) == 2
    assert "SDENGINE_CACHE_LIMIT: 'plenty'" in capsys.readouterr().err


def test_the_command_says_where_there_is_no_cache(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    monkeypatch.delenv("SDENGINE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert main(["cache"]) == 1
    assert "the user has no home folder. SDENGINE_CACHE names" in capsys.readouterr().err
