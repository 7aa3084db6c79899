"""Previews of the command: a file that is replaced as the picture appears."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.tiny_bundle import make_tiny_bundle

from sdengine.cli.main import main


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    bundle = make_tiny_bundle(tmp_path_factory.mktemp("bundle") / "tiny")
    return ["generate", "a star", "--steps", "4", "--seed", "1", "--bundle", str(bundle)]


def test_a_preview_is_written_and_replaced(command: list[str], tmp_path: Path) -> None:
    preview, out = tmp_path / "so-far.png", tmp_path / "out.png"
    given = ["--preview", str(preview), "--preview-every", "2", "--preview-method", "vae"]
    assert main([*command, *given, "--batch", "2", "-o", str(out)]) == 0
    with Image.open(preview) as image:
        assert image.height >= 256
        assert image.width == 2 * image.height
        assert any(low < high for low, high in image.getextrema())
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "out-1.png",
        "out-2.png",
        "so-far.png",
    ]
    assert main([*command, *given, "-o", str(out)]) == 0  # over the older preview
    with Image.open(preview) as image:
        assert image.width == image.height


def test_a_preview_takes_no_pictures_place(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "mine.png"
    Image.new("RGB", (8, 8), "red").save(picture)
    before = picture.read_bytes()
    given = ["--preview", str(picture), "-o", str(tmp_path / "out.png")]
    assert main([*command, *given]) == 2
    assert "--preview: " in capsys.readouterr().err
    assert picture.read_bytes() == before
    assert main([*command, *given, "--preview-every", "2", "--overwrite"]) == 0
    assert picture.read_bytes() != before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--preview-every", "2"], "--preview-every"),
        (["--preview-method", "vae"], "nothing without --preview"),
        (["--preview", "a.jpg"], "--preview: 'a.jpg'"),
        (["--preview", "out.png"], "another file than --output"),
        (["--preview", "a.png", "--preview-method", "lineer"], "--preview-method: 'lineer'"),
        (["--preview", "no/folder.png"], "does not exist"),
        (["--preview", "a.png", "--preview-every", "0"], "at least 1"),
        (["--preview", "a.png", "--preview-method", "tiny"], "tiny decoder"),
        (["--vae-tiles", "on"], "auto, always, never"),
        (["--decoder", "tiny"], "--tiny-vae"),
    ],
)
def test_what_has_no_effect_is_refused(
    command: list[str],
    options: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*command, *options]) in (1, 2)
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
