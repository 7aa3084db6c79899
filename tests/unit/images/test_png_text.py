"""Text chunks of PNG files: what is read, what is passed over, what is refused."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sdengine.errors import ConfigError
from sdengine.images.exif_text import MAX_TEXT_BYTES
from sdengine.images.picture_text import read_text

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 2, 0, 0, 0))
END = chunk(b"IEND", b"")


def png(path: Path, *chunks: bytes) -> Path:
    path.write_bytes(SIGNATURE + HEADER + b"".join(chunks) + END)
    return path


def test_every_kind_that_pillow_writes(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("plain", "caf\xe9, a\nb")
    info.add_text("packed", "caf\xe9 " * 100, zip=True)
    info.add_itxt("international", "赤い円 🔴", lang="ja", tkey="赤")
    info.add_itxt("both", "赤い円 🔴" * 100, zip=True)
    info.add_text("other", "x")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png", pnginfo=info)
    with Image.open(tmp_path / "a.png") as image:
        expected = {key: str(text) for key, text in image.info.items()}
    del expected["other"]
    assert read_text(tmp_path / "a.png", expected.keys()) == expected
    assert len(expected) == 4


def test_text_after_the_pixels_and_the_last_of_several(tmp_path: Path) -> None:
    texts = (chunk(b"tEXt", b"k\0one"), chunk(b"IDAT", b""), chunk(b"tEXt", b"k\0two"))
    assert read_text(png(tmp_path / "a.png", *texts), ["k"]) == {"k": "two"}


def test_what_is_too_long_is_told_apart_from_what_is_not_there(tmp_path: Path) -> None:
    bomb = zlib.compress(bytes(64 << 20))
    texts = (
        chunk(b"tEXt", b"plain\0" + bytes(MAX_TEXT_BYTES)),
        chunk(b"zTXt", b"packed\0\0" + bomb),
        chunk(b"iTXt", b"both\0\1\0\0\0" + bomb),
        chunk(b"tEXt", b"other\0" + bytes(MAX_TEXT_BYTES)),
        chunk(b"tEXt", b"no separator"),
    )
    path = png(tmp_path / "a.png", *texts)
    tracemalloc.start()
    try:
        found = read_text(path, ["plain", "packed", "both"])
        assert found == {"plain": None, "packed": None, "both": None}
        assert tracemalloc.get_traced_memory()[1] < 4 * MAX_TEXT_BYTES
    finally:
        tracemalloc.stop()


def test_size_that_a_header_claims_is_not_allocated(tmp_path: Path) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 16, 6, 0, 0, 0))
    path = tmp_path / "a.png"
    path.write_bytes(SIGNATURE + header + chunk(b"tEXt", b"k\0v") + END)
    assert read_text(path, ["k"]) == {"k": "v"}


TEXT = chunk(b"tEXt", b"k\0value")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "does not begin"),
        (b"no picture", "does not begin"),
        (SIGNATURE, "ends before"),
        (SIGNATURE + HEADER, "ends before"),
        (SIGNATURE + HEADER + TEXT[:-1], "claims 7 bytes"),
        (SIGNATURE + struct.pack(">I4s", 2**32 - 1, b"tEXt") + END, "claims 4294967295 bytes"),
        (SIGNATURE + TEXT[:-1] + b"?" + END, "checksum"),
        (SIGNATURE + chunk(b"zTXt", b"k\0\1x") + END, "unknown way"),
        (SIGNATURE + chunk(b"zTXt", b"k\0\0no stream") + END, "cannot be unpacked"),
        (SIGNATURE + chunk(b"zTXt", b"k\0\0" + zlib.compress(b"abc")[:-5]) + END, "ends early"),
        (SIGNATURE + chunk(b"iTXt", b"k\0\0\0x") + END, "layout"),
        (SIGNATURE + chunk(b"iTXt", b"k\0\2\0\0\0x") + END, "layout"),
        (SIGNATURE + chunk(b"iTXt", b"k\0\0\0\0\0\xff") + END, "not UTF-8"),
    ],
)
def test_damage(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ConfigError, match=f"not a usable picture: .*{message}"):
        read_text(tmp_path / "a.png", ["k"])


def test_more_chunks_than_any_picture_has(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", chunk(b"IDAT", b"") * (2**18 + 1))
    with pytest.raises(ConfigError, match="more than 262144 chunks"):
        read_text(path, ["k"])


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "pipe", "."):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_text(tmp_path / name, ["k"])
    for path in ("a\0b", 3.5, None):
        with pytest.raises(ConfigError, match="from: "):
            read_text(path, ["k"])  # type: ignore[arg-type]
