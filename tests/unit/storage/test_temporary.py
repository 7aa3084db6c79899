"""Temporary files and folders: whose writer lives stay, what killed writers left is removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sdengine.storage import file_lock
from sdengine.storage.temporary import (
    abandoned,
    is_abandoned,
    remove_abandoned,
    temporary_file,
    temporary_folder,
)

_WRITER = """
import sys, time
from pathlib import Path
from sdengine.storage.temporary import temporary_file, temporary_folder
place = Path(sys.argv[1])
with temporary_file(place / "file") as (_, file), temporary_folder(place / "folder") as folder:
    file.write(bytes(100))
    file.flush()
    (folder / "inner").write_bytes(bytes(10))
    print("written", flush=True)
    time.sleep(60)
"""
needs_locks = pytest.mark.skipif(not file_lock.HAS_LOCKS, reason="the system has no flock")


def killed_writer(place: Path) -> None:
    """Have a process write a file and a folder, and kill it meanwhile."""
    command = [sys.executable, "-c", _WRITER, str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "written\n"
        assert list(abandoned(place)) == []
        writer.send_signal(signal.SIGKILL)


@needs_locks
def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    killed_writer(tmp_path)
    assert len(list(abandoned(tmp_path))) == 2
    assert remove_abandoned(tmp_path) == 110
    assert os.listdir(tmp_path) == []


def test_nothing_of_a_living_writer_is_removed(tmp_path: Path) -> None:
    with temporary_file(tmp_path / "a") as (path, _), temporary_folder(tmp_path / "b") as folder:
        assert remove_abandoned(tmp_path) == 0
        assert path.exists() and folder.is_dir()
    assert os.listdir(tmp_path) == []


@needs_locks
def test_only_what_has_our_name_is_removed(tmp_path: Path) -> None:
    others = [".a.1234abcd", "a.1234abcd.sdengine", ".a.1234.sdengine", ".a.1234abcd.sdengine.old"]
    for name in others:
        (tmp_path / name).write_text("precious")
    (tmp_path / ".link.1234abcd.sdengine").symlink_to(tmp_path / ".a.1234abcd")
    os.mkfifo(tmp_path / ".pipe.1234abcd.sdengine")
    (tmp_path / ".a.1234abcd.sdengine").write_text("left")
    assert remove_abandoned(tmp_path) == 4
    assert len(os.listdir(tmp_path)) == len(others) + 2


def test_without_locks_only_what_is_old_is_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_lock, "HAS_LOCKS", False)
    path = tmp_path / ".a.1234abcd.sdengine"
    path.write_text("half")
    assert not is_abandoned(path)
    os.utime(path, (0, 0))
    assert is_abandoned(path)


def test_names_stay_within_what_file_systems_take(tmp_path: Path) -> None:
    with temporary_file(tmp_path / ("ä" * 120 + ".png")) as (path, _):
        assert len(os.fsencode(path.name)) < 255
