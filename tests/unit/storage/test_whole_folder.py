"""Whole folders: what killed writers left is cleared up, what they had moved aside comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdengine.errors import OutputError
from sdengine.storage.whole_folder import write_folder


def fill(folder: Path) -> None:
    (folder / "marker").write_text("new")


def test_what_killed_writers_left_is_removed(tmp_path: Path) -> None:
    for name in (".b.1234abcd.sdengine", ".b.1234abcd.sdengine.old", ".c.1234abcd.sdengine.old"):
        fill_in = tmp_path / name
        fill_in.mkdir()
        (fill_in / "marker").write_text("old")
    (tmp_path / "b").mkdir()
    fill(tmp_path / "b")
    write_folder(tmp_path / "b", fill, what="thing", marker="marker", force=True)
    assert sorted(os.listdir(tmp_path)) == [".c.1234abcd.sdengine.old", "b"]


def test_a_folder_that_was_aside_when_its_writer_was_killed_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".b.1234abcd.sdengine.old"
    aside.mkdir()
    (aside / "marker").write_text("old")
    with pytest.raises(OutputError, match="exists"):
        write_folder(tmp_path / "b", fill, what="thing", marker="marker")
    assert (tmp_path / "b" / "marker").read_text() == "old"
    assert os.listdir(tmp_path) == ["b"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write_folder(tmp_path / "b", fill, what="thing", marker="marker")

    def fail(folder: Path) -> None:
        (folder / "marker").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "b", fail, what="thing", marker="marker", force=True)
    assert (tmp_path / "b" / "marker").read_text() == "new"
    assert os.listdir(tmp_path) == ["b"]
