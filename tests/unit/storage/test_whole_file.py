"""Whole files: there with the end of the block, readable like any other, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sdengine.storage.whole_file import whole_file


def test_a_file_is_there_with_the_end_of_the_block(tmp_path: Path) -> None:
    place = tmp_path / "a.weights"
    place.write_bytes(b"before")
    with whole_file(place) as file:
        file.write(b"after")
        (beside,) = set(os.listdir(tmp_path)) - {"a.weights"}
        assert beside.startswith(".a.weights.")  # where the cache looks for what writers left
        assert place.read_bytes() == b"before"
    assert place.read_bytes() == b"after"
    assert os.listdir(tmp_path) == ["a.weights"]


def test_after_an_error_the_place_is_as_before(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "nowhere" / "a"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="permissions are POSIX's")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_others_may_read_it_where_the_user_lets_them(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "a") as file:
            file.write(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode
