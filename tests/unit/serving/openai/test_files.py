"""Files by address: bounded in bytes and time, found by their names alone."""

from __future__ import annotations

import time

import pytest

from sdengine.errors import ConfigError
from sdengine.serving.openai.files import Files


def test_files_are_found_by_names_of_their_own() -> None:
    files = Files(100, 60)
    first, second = files.put([b"a", b"a"], "png")
    assert first != second and first.endswith(".png") and len(first) > 30
    assert files.get(first) == b"a"
    assert files.get("other.png") is None


def test_the_oldest_go_where_there_are_too_many_bytes() -> None:
    files = Files(10, 60)
    (old,) = files.put([b"123456"], "png")
    new = files.put([b"1234", b"12345"], "png")
    assert files.get(old) is None
    assert [files.get(name) for name in new] == [b"1234", b"12345"]
    assert len(files) == 2


def test_files_that_could_not_be_kept_together_are_refused() -> None:
    files = Files(10, 60)
    (kept,) = files.put([b"1"], "png")
    with pytest.raises(ConfigError, match=r"response_format: 'url'.*b64_json"):
        files.put([b"123456", b"123456"], "png")
    assert files.get(kept) == b"1"


def test_files_go_after_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    files = Files(10, 60)
    (name,) = files.put([b"1"], "png")
    later = time.monotonic() + 61
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert files.get(name) is None
    assert len(files) == 0
