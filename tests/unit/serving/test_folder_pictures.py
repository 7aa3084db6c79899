"""Pictures of rows: files below the folder of the requests, and never one outside."""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path

import pytest
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.serving.folder_pictures import FolderPictures


def png(side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(png())
    (folder / "more" / "B.PNG").write_bytes(png())
    (tmp_path / "secret.png").write_bytes(png())
    return folder


def test_files_below_the_folder_and_base64(folder: Path) -> None:
    read = FolderPictures(folder)
    (folder / "link.png").symlink_to("more/B.PNG")
    for value in ("a.png", "more/B.PNG", "more/../a.png", "./a.png", "link.png"):
        assert read("image", value) == png()
    assert read("image", base64.b64encode(png()).decode()) == png()


@pytest.mark.parametrize(
    "value",
    [
        "../secret.png",
        "more/../../secret.png",
        "absolute",
        "link.png",
        "linked/secret.png",
        "no.png",
        "pipe.png",
        "circle.png",
        "more.png",
        "a\0.png",
        "x" * 5000 + ".png",
        "http://127.0.0.1/a.png",
        "file:///etc/a.png",
        "a",
        "",
        7,
        None,
        ["a.png"],
    ],
)
def test_nothing_else_is_read(folder: Path, tmp_path: Path, value: object) -> None:
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "circle.png").symlink_to("circle.png")
    (folder / "more.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    if value == "absolute":
        value = str(folder / "a.png")
    with pytest.raises(ConfigError, match="image"):
        FolderPictures(folder)("image", value)


def test_limits_hold_before_anything_is_decoded(folder: Path) -> None:
    with pytest.raises(ConfigError, match="at most 63 pixels"):
        FolderPictures(folder, max_pixels=63)("image", "a.png")
    with pytest.raises(ConfigError, match="at most 10 bytes"):
        FolderPictures(folder, max_bytes=10)("image", "a.png")
    (folder / "bad.png").write_bytes(b"no picture")
    with pytest.raises(ConfigError, match="no picture"):
        FolderPictures(folder)("image", "bad.png")
