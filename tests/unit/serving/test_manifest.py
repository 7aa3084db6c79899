"""Rows and manifest of a batch: line by line, in order, whole or not there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from sdengine.errors import ConfigError, OutputError
from sdengine.serving.batch import Record
from sdengine.serving.batch_rows import RowFile, read_rows
from sdengine.serving.manifest import Manifest


@pytest.fixture
def rows(tmp_path: Path) -> RowFile:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"b": 2}\n  \n{"c": 3}')
    return RowFile(path)


def record(number: int) -> Record:
    return Record(number, "made", {"row": number, "files": []})


def test_rows_are_lines_that_are_not_blank(rows: RowFile) -> None:
    assert (rows.count, rows.num_lines) == (3, 5)
    assert [(row.number, row.fields()) for row in rows.rows()] == [
        (1, {"a": 1}),
        (3, {"b": 2}),
        (5, {"c": 3}),
    ]


@pytest.mark.parametrize("lines", [1, 2, 3, 5, 9])
def test_chunks_are_all_of_the_rows(rows: RowFile, lines: int) -> None:
    chunks = list(rows.chunks(lines))
    assert sum(chunk.count for chunk in chunks) == 5
    read = [row for chunk in chunks for row in read_rows(rows.path, chunk)]
    assert read == list(rows.rows())


def test_a_file_without_rows_or_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n \n")
    for name in ("empty", "missing", "."):
        with pytest.raises(ConfigError, match="requests: "):
            RowFile(tmp_path / name)


def test_a_change_is_noticed(rows: RowFile) -> None:
    assert rows.is_unchanged()
    with rows.path.open("a") as file:
        file.write("\n{}")
    assert not rows.is_unchanged()
    rows.path.unlink()
    assert not rows.is_unchanged()


def test_the_manifest_is_in_the_order_of_the_rows(rows: RowFile, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "errors.jsonl").write_text("of an earlier run")
    with Manifest(rows, out) as manifest:
        for number in (5, 1, 3, 1):
            manifest.add(record(number))
        assert [path for path in os.listdir(out) if not path.startswith(".")] == ["errors.jsonl"]
        manifest.finish()
    lines = (out / "manifest.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in lines] == [1, 3, 5]
    assert os.listdir(out) == ["manifest.jsonl"]


def test_rows_of_which_nothing_came_are_errors(rows: RowFile, tmp_path: Path) -> None:
    with Manifest(rows, tmp_path) as manifest:
        manifest.add(record(3))
        lost = list(manifest.lost())
        assert [(one.number, one.content["error"]["type"]) for one in lost] == [
            (1, "RowLost"),
            (5, "RowLost"),
        ]
        for one in lost:
            manifest.add(one)
        manifest.finish()
    errors = (tmp_path / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["row"] for line in errors] == [1, 5]
    assert len((tmp_path / "manifest.jsonl").read_text().splitlines()) == 3


def test_an_interruption_leaves_no_manifest(rows: RowFile, tmp_path: Path) -> None:
    before = set(os.listdir(tmp_path))
    with pytest.raises(KeyboardInterrupt), Manifest(rows, tmp_path) as manifest:
        manifest.add(record(1))
        raise KeyboardInterrupt
    assert set(os.listdir(tmp_path)) == before


def test_a_place_that_cannot_be_written_is_said(rows: RowFile, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        Manifest(rows, tmp_path / "missing")
