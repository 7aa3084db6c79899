"""`sdengine generate`: what a picture may ask for with --from, and what options change of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from support.tiny_bundle import make_tiny_bundle

from sdengine.cli.main import main


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny", kind="sdxl"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(folder: Path, key: str, text: str) -> str:
    info = PngInfo()
    info.add_itxt(key, text)
    Image.new("RGB", (8, 8)).save(folder / "in.png", pnginfo=info)
    return "in.png"


def asking(folder: Path, **request: Any) -> str:
    content = {"format": 1, "request": {"prompt": "a", **request}, "model": {}}
    return picture(folder, "sdengine", json.dumps(content))


def test_a_picture_never_starts_unbounded_work(
    folder: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = asking(folder, steps=1000, batch_size=256, width=64, height=64, sampler="euler")
    given = ["generate", "--bundle", bundle, "--from", source, "--json"]
    assert main(given) == 2
    assert capsys.readouterr().err == (
        "error: from: 'in.png' asks for 256 images (at most 16), 1000 steps (at most 150). Add "
        "--yes to make it all the same, or give smaller values as options.\n"
    )
    assert main([*given, "--steps", "2"]) == 2
    assert "256 images (at most 16)." in capsys.readouterr().err
    assert main([*given, "--steps", "2", "--batch", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    source = asking(folder, steps=151, width=64, height=64, sampler="euler")
    assert main(["generate", "--bundle", bundle, "--from", source, "--yes"]) == 0
    assert not list(folder.glob(".sdengine*"))


def test_a_guidance_interval_is_an_option_and_is_in_the_file(
    folder: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["generate", "a", "--bundle", bundle, "--steps", "4", "--seed", "1", "--guidance", "3"]
    assert main([*given, "--guidance-interval", "0.25,.75", "-o", "a.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["guidance_interval"] == [0.25, 0.75]
    with Image.open(folder / "a.png") as image:
        texts: dict[str, str] = image.text
    assert "CFG interval: 0.25-0.75" in texts["parameters"]
    assert json.loads(texts["sdengine"])["request"]["guidance_interval"] == [0.25, 0.75]
    again = ["generate", "--bundle", bundle, "--from", "a.png", "-o", "b.png"]
    assert main(again) == 0
    assert (folder / "a.png").read_bytes() == (folder / "b.png").read_bytes()
    assert main([*again, "--guidance-interval", "0,1", "--overwrite"]) == 0
    assert (folder / "a.png").read_bytes() != (folder / "b.png").read_bytes()
    capsys.readouterr()
    for wrong, told in (
        ("0.2", "guidance-interval: '0.2' is not accepted; expected two numbers such as 0.2,0.8"),
        ("0,0.5,1", "guidance-interval: '0,0.5,1' is not accepted"),
        ("0.8,0.2", "guidance_interval: (0.8, 0.2) is not accepted; expected two numbers from 0"),
        ("nan,1", "guidance_interval: nan is not accepted; expected a number from 0 to 1"),
        ("0,1.5", "guidance_interval: 1.5 is not accepted; expected a number from 0 to 1"),
    ):
        assert main([*given, "--guidance-interval", wrong]) == 2
        assert told in capsys.readouterr().err


def test_tags_and_what_is_not_understood_are_warnings(
    folder: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "a <lora:x:1>\nSteps: 2, Sampler: Euler, Seed: -1, Size: 64x64, Clip skip: 2\nTemplate: b"
    )
    source = picture(folder, "parameters", text)
    assert main(["generate", "--bundle", bundle, "--from", source, "--json"]) == 0
    told = capsys.readouterr()
    shown = json.loads(told.out)
    assert "warning: not understood and left out: Template." in told.err
    assert "warning: prompt: <lora:x:1> is not applied" in told.err
    assert shown["warnings"] == [line for line in shown["warnings"] if "<lora:x:1>" in line]
    assert (shown["clip_skip"], shown["seed"] >= 0) == (1, True)
    assert main(["generate", "--bundle", bundle, "--from", source, "--clip-skip", "1"]) == 0
    again = ["generate", "--bundle", bundle, "--from", "out.png", "--web-ui-clip-skip", "2"]
    assert main([*again, "-o", "again.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["clip_skip"] == 1


def embedding(path: Path, scale: float = 5.0) -> str:
    import torch

    path.parent.mkdir(exist_ok=True)
    pair = {"clip_l": torch.full((2, 8), scale), "clip_g": torch.full((2, 8), -scale)}
    torch.save(pair, path)
    return str(path)


def test_embeddings_are_given_by_file_and_again_with_from(
    folder: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cat, dog = embedding(folder / "a" / "my-cat.pt"), embedding(folder / "a" / "dog.bin", 2.0)
    common = ["generate", "--bundle", bundle, "--steps", "2", "--seed", "3"]
    run = [*common, "a my-cat, toy", "--embedding", cat, "--embedding", f"toy={dog}"]
    assert main([*run, "-o", "out.png"]) == 0
    assert "warning" not in capsys.readouterr().err
    again = ["generate", "--bundle", bundle, "--from", "out.png", "-o"]
    assert main([*again, "1.png"]) == 2
    assert "embeddings: 'my-cat', with SHA-256" in capsys.readouterr().err
    # By their hashes, whatever they are called.
    assert main([*again, "2.png", "--embeddings", "a"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert (folder / "2.png").read_bytes() == (folder / "out.png").read_bytes()
    assert main([*again, "2b.png", "--embedding", f"x={cat}", "--embedding", dog]) == 0
    assert "warning" not in capsys.readouterr().err
    assert (folder / "2b.png").read_bytes() == (folder / "out.png").read_bytes()
    # By name, where the hash is another one.
    other = embedding(folder / "b" / "my-cat.pt", 3.0)
    assert main([*again, "3.png", "--embedding", other, "--embedding", f"toy={dog}"]) == 0
    assert "made with another file of the embedding 'my-cat'" in capsys.readouterr().err
    assert (folder / "3.png").read_bytes() != (folder / "out.png").read_bytes()
    # A new prompt may name what it wants.
    assert main([*again, "4.png", "only my-cat", "--embeddings", "a", "--json"]) == 0
    told = capsys.readouterr()
    assert [one["name"] for one in json.loads(told.out)["embeddings"]] == ["my-cat"]
    assert "made with the embedding 'toy'" in told.err


def test_embeddings_without_effect_are_told(
    folder: Path, bundle: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cat = embedding(folder / "my-cat.pt")
    common = ["generate", "--bundle", bundle, "--steps", "1", "a cat"]
    assert main([*common, "--embedding", cat]) == 0
    assert "warning: embeddings: 'my-cat' is named in no prompt" in capsys.readouterr().err
    assert main([*common, "--embedding", "=x"]) == 2
    assert "--embedding: '=x' is not accepted; expected FILE or NAME=FILE" in (
        capsys.readouterr().err
    )
    assert main([*common, "--embedding", cat, "--embedding", f"my-cat={cat}"]) == 0
    source = picture(
        folder, "parameters", 'a my-cat\nSteps: 1, Size: 64x64, TI hashes: "my-cat: 0123456789"'
    )
    capsys.readouterr()
    assert main(["generate", "--bundle", bundle, "--from", source]) == 0
    told = capsys.readouterr().err
    assert "made with the embedding 'my-cat', with SHA-256 0123456789, which is not used" in told
    assert "not understood" not in told
    assert main(["generate", "--bundle", bundle, "--from", source, "--embedding", cat]) == 0
    assert "another file of the embedding 'my-cat', with SHA-256 0123456789" in (
        capsys.readouterr().err
    )
