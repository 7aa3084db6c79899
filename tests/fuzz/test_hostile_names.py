"""Names with terminal codes, in every file that a command reads: none reaches the terminal."""

from __future__ import annotations

import json
import logging
import shutil
import struct
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdengine.bundle.reader import DEMO_BUNDLE
from sdengine.cli.main import main

# A title, colours, a cleared screen, a line of its own, another direction, rich's markup.
HOSTILE = "\x1b]0;owned\x07\x1b[2J\x1b[31m\r\nerror: all is well\x9b1A\u202e[bold]x[/bold]\x7f"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle under foreign names, with a token that is hostile as well."""
    place = tmp_path_factory.mktemp("bundle") / "bundle\x1b[31m"
    shutil.copytree(DEMO_BUNDLE, place)
    manifest = json.loads((place / "manifest.json").read_text())
    manifest |= {"name": HOSTILE, "versions": {HOSTILE[:40]: HOSTILE}}
    manifest["source"]["name"] = HOSTILE
    unet = manifest["networks"]["unet"]["options"]
    unet |= {"kernels": "auto", "kernels_reason": HOSTILE}
    (place / "manifest.json").write_text(json.dumps(manifest))
    return place


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect"],
        ["inspect", "--json"],
        ["inspect", "--plan", "unet"],
        ["verify"],
        ["plan"],
        ["plan", "--json"],
        ["tokens", HOSTILE, "--bundle"],
        ["tokens", f"[a:{HOSTILE}:0.5]", "--bundle"],
        ["tokens", HOSTILE, "--json", "--bundle"],
        ["--verbose", "generate", HOSTILE, "--steps", "1", "--overwrite", "--bundle"],
        ["generate", HOSTILE, "--steps", "1", "--overwrite", "--json", "--bundle"],
    ],
    ids=lambda words: " ".join(word for word in words if HOSTILE not in word),
)
def test_of_a_bundle(
    bundle: Path,
    arguments: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.WARNING))
    assert main([*arguments, str(bundle)]) == 0
    check(capsys)


def test_of_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = json.dumps({HOSTILE: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file = tmp_path / f"a{HOSTILE[:4]}.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    for command in ("build", "convert", "export"):
        assert main([command, str(file), "-o", str(tmp_path / HOSTILE)]) == 1
        assert "error: " in check(capsys)


def test_of_what_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["generate", "a", "--bundle", HOSTILE],
        ["generate", "a", "-o", f"{tmp_path}/{HOSTILE}/a.png"],
        ["generate", "a", "--sampler", HOSTILE],
        ["generate", "--from", HOSTILE],
        ["inspect", HOSTILE],
        ["build", HOSTILE, "-o", "b"],
        ["plan", HOSTILE],
        ["plan", "demo", "--resolutions", HOSTILE],
        [f"--{HOSTILE}"],
        [HOSTILE],
    ):
        assert main(arguments) in (1, 2)
        assert check(capsys).count("\n") == 1


def test_of_metadata(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = f"Steps: 1, Sampler: Euler, CFG scale: 1, Seed: 1, Size: 128x128, Model: {HOSTILE}"
    for text in (f"a circle\n{settings}", f"a\nSteps: {HOSTILE}, Sampler: {HOSTILE}"):
        info = PngInfo()
        info.add_itxt("parameters", text)
        Image.new("RGB", (8, 8)).save("from.png", pnginfo=info)
        main(["generate", "--from", "from.png"])
        check(capsys)


def check(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was printed, of lines that a terminal only shows."""
    printed = "".join(capsys.readouterr())
    assert printed
    for line in printed.split("\n"):
        assert line.isprintable(), repr(line)
        assert not line.startswith("error: all is well")
    return printed
