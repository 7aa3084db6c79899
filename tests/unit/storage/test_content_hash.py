"""Content hashes: remembered for one version of a file, found again for every other."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from sdengine.errors import BundleError
from sdengine.storage import content_hash
from sdengine.storage.content_hash import FileVersion, HashedFile, hash_open_file


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SDENGINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_hash, "_in_memory", {})
    return tmp_path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collect every hash that is really computed."""
    found: list[str] = []
    compute = content_hash._sha256

    def count(file: object) -> str:
        found.append(compute(file))  # type: ignore[arg-type]
        return found[-1]

    monkeypatch.setattr(content_hash, "_sha256", count)
    return found


def hash_of(path: Path) -> HashedFile:
    with path.open("rb") as file:
        return hash_open_file(file, path)


def test_a_file_is_hashed_once(place: Path, hashed: list[str]) -> None:
    path = place / "a"
    path.write_bytes(b"weights")
    assert hash_of(path).sha256 == hashlib.sha256(b"weights").hexdigest()
    content_hash._in_memory.clear()  # as in another process
    assert hash_of(path) == hash_of(path)
    assert len(hashed) == 1


@pytest.mark.parametrize("how", ["in place", "replaced", "with its old times"])
def test_a_changed_file_is_hashed_again(place: Path, hashed: list[str], how: str) -> None:
    path = place / "a"
    path.write_bytes(b"weights")
    before, status = hash_of(path), path.stat()
    if how == "replaced":
        (place / "b").write_bytes(b"damaged")
        os.replace(place / "b", path)
    else:
        path.write_bytes(b"damaged")
    if how == "with its old times":
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not before.is_unchanged()
    assert hash_of(path).sha256 == hashlib.sha256(b"damaged").hexdigest()
    path.write_bytes(b"weights")
    assert hash_of(path).sha256 == before.sha256
    assert len(hashed) == 3


def test_a_change_within_a_tick_of_the_clock_is_seen(place: Path) -> None:
    path = place / "a"
    for n in range(20):
        path.write_bytes(b"%7d" % n)
        assert hash_of(path).sha256 == hashlib.sha256(b"%7d" % n).hexdigest()


def test_times_in_whole_seconds_are_not_trusted_at_once() -> None:
    now = time.time_ns()
    coarse = now // 1_000_000_000 * 1_000_000_000
    assert not FileVersion(1, 2, 3, coarse, coarse).is_settled()
    assert FileVersion(1, 2, 3, coarse, coarse - 9_000_000_000).is_settled()
    assert not FileVersion(1, 2, 3, now, now + 9_000_000_000).is_settled()


def test_what_cannot_be_kept_is_remembered_by_the_process(
    place: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDENGINE_CACHE", str(place / "a" / "nowhere"))
    path = place / "a"
    path.write_bytes(b"weights")
    assert hash_of(path) == hash_of(path)
    assert len(hashed) == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"version": 3, "known": "x"}', b"\xff"])
def test_a_damaged_record_is_made_again(place: Path, hashed: list[str], content: bytes) -> None:
    path = place / "a"
    path.write_bytes(b"weights")
    found = hash_of(path)
    content_hash._in_memory.clear()
    found.version.record.write_bytes(content)
    assert hash_of(path) == found
    assert len(hashed) == 2


def test_a_file_that_changes_while_it_is_read_has_no_hash(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "a"
    path.write_bytes(b"weights")

    def change(file: object) -> str:
        path.write_bytes(b"others!!")
        return "0" * 64

    monkeypatch.setattr(content_hash, "_sha256", change)
    with pytest.raises(BundleError, match="changed while it was read"):
        hash_of(path)


def test_records_are_bounded(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_hash, "_MAX_REMEMBERED", 3)
    for n in range(6):
        (place / f"{n}").write_bytes(b"weights")
        hash_of(place / f"{n}")
    assert len(os.listdir(place / "cache" / "versions")) == 3
