"""Rows of a batch: what they are called, what is made once, what becomes of bad ones."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.adapters import make_demo_lora
from support.tiny_bundle import make_tiny_bundle

from sdengine.errors import DeviceLostError, NonFiniteError, OutputError
from sdengine.images.metadata import read_metadata
from sdengine.serving.batch import BatchJob, Record, RowMaker, with_seeds
from sdengine.serving.batch_rows import Row, RowFile
from sdengine.serving.begun_rows import MAX_DEATHS, BegunRows
from sdengine.storage.temporary import temporary_file

SMALL: dict[str, Any] = {"prompt": "a circle", "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", max_batch=4)


@pytest.fixture
def job(tiny: Path, tmp_path: Path) -> BatchJob:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    return BatchJob(tmp_path / "in" / "rows.jsonl", tmp_path / "out", {"bundle": str(tiny)})


@pytest.fixture
def maker(job: BatchJob) -> Iterator[RowMaker]:
    with job.opened() as maker:
        yield maker


def made(maker: RowMaker, *rows: Any) -> list[Record]:
    texts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    return [maker.make(Row(number, text)) for number, text in enumerate(texts, 1)]


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".png"}


def test_a_row_is_called_by_its_hash_and_listed_with_that_of_its_file(maker: RowMaker) -> None:
    (record,) = made(maker, {**SMALL, "seed": 7, "id": "first"})
    content = record.content
    assert (record.status, content["row"], content["id"]) == ("made", 1, "first")
    (file,) = content["files"]
    assert file["file"] == f"{content['hash'][:32]}.png"
    assert file["seed"] == content["request"]["seed"] == 7
    assert set(os.listdir(maker.output)) == {".begun", file["file"]}
    expected = maker.engine.generate(**SMALL, seed=7).arrays[0]
    with Image.open(maker.output / file["file"]) as image:
        assert np.array_equal(np.asarray(image), expected)
    assert read_metadata(maker.output / file["file"]).fields["prompt"] == "a circle"


def test_what_is_there_is_not_made_again(maker: RowMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**SMALL, "seed": seed} for seed in (1, 2, 1)]
    first = made(maker, *rows)
    assert [one.status for one in first] == ["made", "made", "kept"]
    assert first[0].content["files"] == first[2].content["files"]
    monkeypatch.setattr(maker.engine, "run", None)
    again = made(maker, *rows)
    assert [one.status for one in again] == ["kept"] * 3
    assert [one.content for one in again] == [one.content for one in first]


@pytest.mark.parametrize("damage", ["removed", "cut", "emptied"])
def test_a_file_that_is_not_whole_is_made_again(maker: RowMaker, damage: str) -> None:
    row = {**SMALL, "seed": 1, "batch_size": 3}
    (record,) = made(maker, row)
    before = pictures(maker.output)
    names = [file["file"] for file in record.content["files"]]
    assert names == [f"{record.content['hash'][:32]}-{number}.png" for number in (1, 2, 3)]
    path = maker.output / names[1]
    if damage == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "emptied" else -20])
    assert made(maker, row)[0].status == "made"
    assert pictures(maker.output) == before


def test_threads_change_no_byte(job: BatchJob) -> None:
    found = []
    for threads in (None, 1, 2):
        shutil.rmtree(job.output)
        job.output.mkdir()
        options = {"bundle": "demo", "threads": threads}
        with BatchJob(job.requests, job.output, options).opened() as maker:
            made(maker, {"prompt": "a red circle on white", "steps": 2, "seed": 3})
        found.append(pictures(job.output))
    assert found[0] == found[1] == found[2] and len(found[0]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a square"},
        {"seed": 8},
        {"steps": 3},
        {"guidance_scale": 2.0},
        {"negative_prompt": "blue"},
        {"sampler": "euler"},
        {"batch_size": 2},
    ],
)
def test_another_request_has_another_hash(maker: RowMaker, change: dict[str, Any]) -> None:
    row = {**SMALL, "seed": 7}
    one, other = made(maker, row, {**row, **change})
    assert one.content["hash"] != other.content["hash"]


def test_defaults_and_other_names_of_fields_have_the_same_hash(maker: RowMaker) -> None:
    row = {**SMALL, "seed": 7}
    spelt = {**SMALL, "seed": 7, "negative_prompt": "", "eta": None, "version": 1, "id": 5}
    del spelt["steps"]
    one, other = made(maker, row, {**spelt, "num_inference_steps": 2})
    assert one.content["hash"] == other.content["hash"]


def test_precision_and_bundle_are_in_the_hash(tiny: Path, job: BatchJob, tmp_path: Path) -> None:
    other = make_tiny_bundle(tmp_path / "other", max_batch=2)
    hashes = set()
    for options in ({"bundle": tiny}, {"bundle": tiny, "precision": "fp32"}, {"bundle": other}):
        with BatchJob(job.requests, job.output, options).opened() as maker:
            hashes.add(
                (made(maker, {**SMALL, "seed": 1})[0].content["hash"], maker.engine.precision)
            )
    assert len({one for one, _ in hashes}) == len(hashes) >= 2


def test_files_that_prompts_name_are_in_the_hash(job: BatchJob, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    row = {"prompt": "a circle on white <lora:style:0.5>", "steps": 2, "seed": 3}
    given = {"prompt": "a circle on white", "loras": {"style": 0.5}, "steps": 2, "seed": 3}
    demo = BatchJob(job.requests, job.output, {"bundle": "demo"}, {"lora": f"{tmp_path}/loras"})
    found = []
    for seed in (None, 1, 2):
        if seed is not None:
            make_demo_lora(tmp_path / "loras" / "style.safetensors", seed)
        with demo.opened() as maker:
            found.append(made(maker, row, given))
    (without, refused), (one, same), (other, _) = found
    assert len({record.content["hash"] for record in (without, one, other)}) == 3
    assert "is not applied" in without.content["warnings"][0]
    assert (refused.status, same.status) == ("error", "kept")
    assert same.content["hash"] == one.content["hash"]
    with demo.opened() as maker:  # what is told of a row is told of it on every run
        assert made(maker, row)[0].content == other.content


def test_seeds_that_are_not_given_follow_from_the_row(maker: RowMaker) -> None:
    one, again, other = made(maker, SMALL, SMALL, {**SMALL, "id": 1})
    assert one.content["files"] == again.content["files"] != other.content["files"]
    drawn = [
        {**SMALL, "seed": -1},
        {**SMALL, "seed": [-1, 5, -1], "batch_size": 3},
        {**SMALL, "variation_seed": -1, "variation_strength": 0.5},
        {**SMALL, "variation_strength": 0.5},
    ]
    first = made(maker, *drawn)
    assert [record.status for record in first] == ["made"] * 4
    assert [record.status for record in made(maker, *drawn)] == ["kept"] * 4
    a, five, b = first[1].content["request"]["seed"]
    assert five == 5 and a != b
    assert with_seeds({"seed": 0}, {})["seed"] == 0
    assert with_seeds({"seed": True}, {})["seed"] is True  # which the request refuses


BAD = [
    (b"{", "not valid JSON"),
    (b"[1]", "an object of fields"),
    (b'{"prompt": "a", "prompt": "b"}', "given twice"),
    (b'{"prompt": "a", "guidance_scale": NaN}', "NaN is no number"),
    (b'{"prompt": "\xff"}', "not valid JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"prompt": "a", "seed": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ({}, "prompt: it is missing"),
    ({"prompt": "a", "stps": 3}, "Did you mean steps?"),
    ({"prompt": "\ud800"}, "valid Unicode"),
    ({**SMALL, "steps": 0}, "steps: 0"),
    ({**SMALL, "width": 72}, "width"),
    ({**SMALL, "loras": {"no": 1}}, "loras: 'no'"),
    ({**SMALL, "model": "/etc/passwd"}, "model: '/etc/passwd'"),
    ({**SMALL, "image": "no.png"}, "No such file"),
    ({**SMALL, "id": [1]}, "id: [1]"),
    ({**SMALL, "id": "x" * 1001}, "id: "),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_bad_row_is_a_record(maker: RowMaker, row: Any, message: str) -> None:
    bad, good = made(maker, row, {**SMALL, "seed": 1})
    assert bad.status == "error"
    assert set(bad.content) <= {"row", "id", "error"} and bad.content["row"] == 1
    assert bad.content["error"]["type"].endswith("Error")
    assert message in bad.content["error"]["message"]
    assert good.status == "made" and len(pictures(maker.output)) == 1


def test_a_line_that_is_too_long_is_a_record_and_the_next_is_read(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sdengine.serving.batch_rows.MAX_LINE_BYTES", 1000)
    monkeypatch.setattr("sdengine.serving.batch_rows._PIECE_BYTES", 64)
    lines = [json.dumps({**SMALL, "prompt": "x" * size, "seed": 1}) for size in (10, 2000, 20)]
    path = tmp_path / "in" / "rows.jsonl"
    path.write_text("\n".join(lines))
    rows = RowFile(path)
    records = [maker.make(row) for row in rows.rows()]
    assert [record.status for record in records] == ["made", "error", "made"]
    assert "the line has more than" in records[1].content["error"]["message"]
    assert [record.number for record in records] == [1, 2, 3]


@pytest.mark.parametrize("error", [NonFiniteError("unet: NaN"), ValueError("x"), MemoryError()])
def test_a_row_that_fails_while_it_runs_is_a_record(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(maker.engine, "run", fail)
    (record,) = made(maker, {**SMALL, "id": 3})
    assert record.content["error"]["type"] == type(error).__name__
    assert record.content["id"] == 3
    assert os.listdir(maker.output / ".begun") == []


@pytest.mark.parametrize(
    "error", [OutputError("full"), DeviceLostError("gone"), KeyboardInterrupt()]
)
def test_what_concerns_every_row_ends_the_batch(
    maker: RowMaker, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(maker.engine, "run", fail)
    with pytest.raises(type(error)):
        made(maker, SMALL)
    assert os.listdir(maker.output / ".begun") == []


def test_a_folder_that_went_away_ends_the_batch(maker: RowMaker) -> None:
    shutil.rmtree(maker.output)
    with pytest.raises(OutputError, match="cannot be written"):
        made(maker, SMALL)


def test_a_row_that_ends_its_process_each_time_becomes_a_record(maker: RowMaker) -> None:
    row = {**SMALL, "seed": 1}
    (record,) = made(maker, row)
    name = record.content["hash"][:32]
    (maker.output / f"{name}.png").unlink()
    other, own = deaths(maker.output, "another", 9), deaths(maker.output, name, MAX_DEATHS - 1)
    assert made(maker, row)[0].status == "made"  # and its marks are gone
    assert not any(path.exists() for path in own) and all(path.exists() for path in other)
    (maker.output / f"{name}.png").unlink()
    deaths(maker.output, name, MAX_DEATHS)
    failed, again = made(maker, row, row)
    assert failed.content["error"]["type"] == "EndedItsProcess"
    assert "ended 3 times" in failed.content["error"]["message"]
    assert again.status == "made"  # another run tries it again
    BegunRows(maker.output).clear()
    assert not (maker.output / ".begun").exists()


def test_others_that_make_the_same_row_now_are_no_deaths(maker: RowMaker) -> None:
    begun = BegunRows(maker.output)
    begun.folder.mkdir()
    with temporary_file(begun.folder / "a"), temporary_file(begun.folder / "a"):
        with temporary_file(begun.folder / "a"), begun.begin("a"):
            assert len(os.listdir(begun.folder)) == 4
        begun.clear()
        assert len(os.listdir(begun.folder)) == 2


def deaths(output: Path, name: str, count: int) -> Sequence[Path]:
    """Leave marks as processes do that are killed."""
    folder = output / ".begun"
    folder.mkdir(exist_ok=True)
    paths = [folder / f".{name}.{number:08x}.sdengine" for number in range(count)]
    for path in paths:
        path.touch()
    return paths
