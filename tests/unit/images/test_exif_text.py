"""EXIF texts: what tools write into JPEG, WebP and PNG, and what is hostile."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sdengine.errors import ConfigError
from sdengine.images.exif_text import COMMENT, MAX_TEXT_BYTES, Damaged, tiff_texts
from sdengine.images.picture_text import read_text

TEXT = "a cät, 赤\nNegative prompt: dog\nSteps: 20, Seed: 5"
POINTER, USER_COMMENT, MAKE, MODEL = 0x8769, 0x9286, 0x010F, 0x0110
KEYS = (COMMENT, "Make", "Model", "ImageDescription")


def save(path: Path, comment: bytes = b"", **tags: str) -> Path:
    exif = Image.Exif()
    if comment:
        exif.get_ifd(POINTER)[USER_COMMENT] = comment
    for tag, value in tags.items():
        exif[{"make": MAKE, "model": MODEL}[tag]] = value
    image = Image.new("RGB", (64, 64))
    if path.suffix == ".png":
        image.save(path, exif=exif.tobytes())
    else:
        image.save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".png"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0" + TEXT.encode("utf-16"),
        b"ASCII\0\0\0" + TEXT.encode(),
        bytes(8) + TEXT.encode() + b"\0\0",
        TEXT.encode(),
    ],
)
def test_comments_in_every_code_and_file(tmp_path: Path, suffix: str, comment: bytes) -> None:
    path = save(tmp_path / f"a{suffix}", comment)
    assert read_text(path, KEYS) == {COMMENT: TEXT}


def test_other_texts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.webp", make='workflow:{"a": 1}', model='prompt:{"b": 2}')
    assert read_text(path, KEYS) == {"Make": 'workflow:{"a": 1}', "Model": 'prompt:{"b": 2}'}
    assert read_text(save(tmp_path / "b.jpg"), KEYS) == {}
    Image.new("RGB", (8, 8)).save(tmp_path / "c.webp")
    assert read_text(tmp_path / "c.webp", KEYS) == {}


def tiff(*entries: tuple[int, int, int, int], order: str = "<", more: bytes = b"") -> bytes:
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", 8)
    listed = b"".join(struct.pack(order + "HHII", *entry) for entry in entries)
    return head + struct.pack(order + "H", len(entries)) + listed + more


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "does not begin"),
        (b"II*\0\x08\0\0", "does not begin"),
        (b"II*\0\xff\xff\xff\xff", "behind its end"),
        (b"II*\0\x08\0\0\0\xff\xff", "claims 65535 entries"),
        (tiff((MAKE, 2, 2**32 - 1, 8)), "more bytes than there are"),
        (tiff((MAKE, 2, 100, 2**32 - 1)), "more bytes than there are"),
        (tiff((POINTER, 4, 1, 2**32 - 1)), "behind its end"),
        (tiff((MAKE, 2, 5, 22), more=b"\xff\xfe\xff\xff\xff"), "not in the code"),
    ],
)
def test_hostile_directories(data: bytes, message: str) -> None:
    with pytest.raises(Damaged, match=message):
        tiff_texts(data)


def test_a_directory_that_points_at_itself_ends() -> None:
    for order in "<>":
        assert tiff_texts(tiff((POINTER, 4, 1, 8), (MAKE, 2, 3, 0x414141), order=order)) in (
            {"Make": "AAA"},
            {"Make": "\0AA"},
        )


@settings(max_examples=200)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for head in (b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08"):
        with contextlib.suppress(Damaged):
            tiff_texts(head + data)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=100), cut=st.integers(0, 400))
def test_damaged_files(tmp_path: Path, data: bytes, cut: int) -> None:
    whole = save(tmp_path / "whole.jpg", b"ASCII\0\0\0" + TEXT.encode()).read_bytes()
    webp = save(tmp_path / "whole.webp", b"ASCII\0\0\0" + TEXT.encode()).read_bytes()
    for content in (whole[:cut] + data + whole[cut:], whole[:cut], webp[:cut] + data, webp[:cut]):
        (tmp_path / "a").write_bytes(content)
        try:
            read_text(tmp_path / "a", KEYS)
        except ConfigError as error:
            assert str(error).startswith("from: ")


def test_large_chunks_are_neither_read_nor_allocated(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBP" + struct.pack("<4sI", b"VP8 ", 1 << 30))
        file.seek(1 << 30, 1)
        file.write(struct.pack("<4sI", b"EXIF", 1 << 29))
        file.truncate(file.tell() + (1 << 29))
    tracemalloc.start()
    try:
        assert read_text(path, KEYS) == {COMMENT: None}
        assert tracemalloc.get_traced_memory()[1] < MAX_TEXT_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xd8", "segments do not follow"),
        (b"\xff\xd8\xff\xe1\xff\xff", "more bytes than follow"),
        (b"\xff\xd8\xff\xe1\0\0", "more bytes than follow"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 5000, "more than 4096 segments"),
        (b"RIFF\0\0\0\0WEBPEXIF", "ends within a chunk"),
        (b"RIFF\0\0\0\0WEBPEXIF\xff\0\0\0", "claims 255 bytes"),
        (b"RIFF\0\0\0\0WEBP" + b"VP8 \0\0\0\0" * 5000, "more than 4096 chunks"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError, match=f"not a usable picture: .*{message}"):
        read_text(tmp_path / "a", KEYS)
