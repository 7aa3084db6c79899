"""`sdengine tokens`: what it shows about a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_bundle import make_tiny_bundle

from sdengine.bundle.reader import Bundle
from sdengine.cli.tokens import tokens
from sdengine.errors import ConfigError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", kind="sdxl"))


def show(bundle: str, prompt: str, **options: Any) -> None:
    tokens(prompt, **{"steps": 20, "emphasis": "original", "bundle": bundle, **options})


def table_rows(shown: str) -> list[list[str]]:
    lines = [line for line in shown.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def test_table(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(bundle, "a (b:1.5) [c] BREAK [red]")
    shown = capsys.readouterr().out
    assert table_rows(shown) == [
        ["1", "1", "a</w>", "320", "1"],
        ["1", "2", "b</w>", "321", "1.5"],
        ["1", "3", "c</w>", "322", "0.9091"],
        ["2", "1", "r", "81", "0.9091"],
        ["2", "2", "e", "68", "0.9091"],
        ["2", "3", "d</w>", "323", "0.9091"],
    ]
    assert "text_encoder: 6 of 150 tokens, 2 chunks\n" in shown
    assert "text_encoder_2: the same tokens\n" in shown
    assert "text:" not in shown


def test_empty_prompt(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(bundle, "")
    assert "text_encoder: 0 of 75 tokens, 1 chunk\n" in capsys.readouterr().out


def test_edits_and_parts(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(bundle, "[a:b\x1b:0.25] AND [c|d]:1.5")
    shown = capsys.readouterr().out.splitlines()
    described = [line for line in shown if line.startswith(("text:", "  part"))]
    assert described == [
        "text: a",
        "  part 1, weight 1, steps 1-5",
        "text: c",
        "  part 2, weight 1.5, steps 1, 3, 5, 7, 9, 11, ...",
        "text: d",
        "  part 2, weight 1.5, steps 2, 4, 6, 8, 10, 12, ...",
        "text: b\\x1b",
        "  part 1, weight 1, steps 6-20",
    ]


def test_one_text_in_two_roles(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(bundle, "a AND [b:a:3]:2", steps=4)
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if line.startswith(("text:", "  part"))] == [
        "text: a",
        "  part 1, weight 1, every step",
        "  part 2, weight 2, step 4",
        "text: b",
        "  part 2, weight 2, steps 1-3",
    ]


def test_json(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(bundle, "[a|(b:2)]", steps=3, as_json=True)
    chunk = {"room": 75, "tokens": [{"token": "b</w>", "id": 321, "weight": 2.0}]}
    shown = json.loads(capsys.readouterr().out)
    assert (shown["prompt"], shown["steps"]) == ("[a|(b:2)]", 3)
    assert [text["text"] for text in shown["texts"]] == ["a", "(b:2)"]
    assert shown["texts"][1] == {
        "text": "(b:2)",
        "uses": [{"part": 1, "weight": 1.0, "steps": [2]}],
        "encoders": {"text_encoder": [chunk], "text_encoder_2": [chunk]},
    }


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1001}, {"emphasis": "loud"}])
def test_invalid_options(bundle: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        show(bundle, "a", **options)


def test_needs_neither_networks_nor_tables(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("network", "token_table"):
        monkeypatch.setattr(Bundle, name, lambda *arguments: pytest.fail(f"used {arguments}"))
    show(bundle, "a")


def test_tags_of_other_networks(bundle: str, capsys: pytest.CaptureFixture[str]) -> None:
    show(bundle, "a <lora:[x] y:0.8>")
    shown = capsys.readouterr().out
    assert table_rows(shown) == [["1", "1", "a</w>", "320", "1"]]
    assert shown.endswith("not applied: <lora:[x] y:0.8>\n")
    show(bundle, "a <lora:x:1> <lora:x:1>", as_json=True)
    assert json.loads(capsys.readouterr().out)["not_applied"] == ["<lora:x:1>"]


def test_embeddings_are_shown(
    bundle: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    pair = {"clip_l": torch.ones(2, 8), "clip_g": torch.ones(2, 8)}
    torch.save(pair, tmp_path / "folder" / "my-cat.pt")
    torch.save({"x": torch.ones(2, 1024)}, tmp_path / "folder" / "wide.pt")
    show(bundle, "a (My-Cat:1.5) wide", embeddings=str(tmp_path / "folder"))
    shown = capsys.readouterr()
    assert table_rows(shown.out)[:3] == [
        ["1", "1", "a</w>", "320", "1"],
        ["1", "2", "my-cat", "vector 1", "1.5"],
        ["1", "3", "my-cat", "vector 2", "1.5"],
    ]
    assert "warning: prompt: 'wide' is read as text" in shown.err
    file = f"toy={tmp_path / 'folder' / 'my-cat.pt'}"
    show(bundle, "toy", embedding=[file], as_json=True)
    found = json.loads(capsys.readouterr().out)
    (chunk,) = found["texts"][0]["encoders"]["text_encoder_2"]
    assert chunk["tokens"] == [
        {"token": "toy", "vector": number, "id": None, "weight": 1.0} for number in (1, 2)
    ]
    assert found["warnings"] == []
