"""Pictures as they are in the wild: read upright and in 8 bits, or refused by name."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from sdengine.errors import ConfigError
from sdengine.inputs.picture import MAX_PIXELS, Picture, read_picture
from sdengine.inputs.recorded import Recorded, read_record

RED, BLUE = (200, 30, 40), (20, 60, 180)


def read(field: str, value: Any) -> Picture:
    found = read_picture(field, value)
    assert isinstance(found, Picture)
    return found


def two_colours(mode: str = "RGB") -> Image.Image:
    """Four pixels wide, two high; the left half red, the right half blue."""
    pixels = np.zeros((2, 4, 3), np.uint8)
    pixels[:, :2], pixels[:, 2:] = RED, BLUE
    return Image.fromarray(pixels).convert(mode)


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_formats(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    found = read("image", content(two_colours(), kind, **options))
    assert found.pixels is not None and found.size == (4, 2)
    np.testing.assert_array_equal(found.pixels, np.asarray(two_colours()))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_comes_before_any_conversion(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    palette = two_colours().convert("P", palette=Image.Palette.ADAPTIVE)
    found = read("image", content(palette, exif=exif)).pixels
    upright: dict[int, Any] = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: lambda p: np.rot90(p),
    }
    np.testing.assert_array_equal(found, upright[orientation](np.asarray(two_colours())))


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_a_transparent_colour_is_transparent(mode: str) -> None:
    image = Image.new(mode, (2, 1), 7 if mode != "RGB" else (7, 7, 7))
    image.putpixel((1, 0), 9 if mode != "RGB" else (9, 9, 9))
    if mode == "P":
        image.putpalette([i for i in range(256) for _ in range(3)])
    clear: Any = bytes([255] * 9 + [0]) if mode == "P" else 9 if mode == "L" else (9, 9, 9)
    found = read("image", content(image, transparency=clear)).pixels
    assert found is not None
    np.testing.assert_array_equal(found[0, :, 3], [255, 0])


def test_sixteen_bits_become_eight_and_are_not_clipped() -> None:
    deep = np.array([[0, 255, 257, 32768, 65535]], np.uint16)
    found = read("image", content(Image.fromarray(deep))).pixels
    assert found is not None
    np.testing.assert_array_equal(found[0, :, 0], [0, 1, 1, 128, 255])


def test_cmyk_becomes_rgb() -> None:
    found = read("image", content(two_colours("CMYK"), "JPEG", quality=100)).pixels
    assert found is not None
    assert np.abs(found.astype(int) - np.asarray(two_colours())).max() < 40


def test_arrays_and_pil_images_are_named_by_their_pixels() -> None:
    pixels = np.asarray(two_colours())
    array, image = read("image", pixels), read("image", two_colours())
    assert array == image and array.sha256 != read("image", pixels[:, ::-1]).sha256
    assert read("image", array) is array
    grey = read("image", np.zeros((3, 5), np.uint8))
    assert grey.size == (5, 3) and grey.pixels is not None and grey.pixels.shape == (3, 5, 3)


def test_what_is_given_may_change_afterwards() -> None:
    pixels = np.zeros((2, 2, 3), np.uint8)
    found = read("image", pixels)
    pixels[:] = 9
    assert found.pixels is not None and not found.pixels.any()
    with pytest.raises(ValueError, match="read-only"):
        found.pixels[:] = 1


def bomb() -> bytes:
    """A PNG whose header claims 50,000 x 50,000 pixels."""
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(data, zlib.crc32(kind))
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def test_pictures_of_a_file_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a TIFF with many heads no more than the second one is looked at."""

    def directory(follows: int) -> bytes:
        entries = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)]
        packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
        return struct.pack("<H", len(entries)) + packed + struct.pack("<I", follows)

    size = len(directory(0))
    starts = [8 + size * number for number in range(100)]
    heads = b"".join(directory(following) for following in [*starts[1:], 0])
    content = b"II*\0" + struct.pack("<I", 8) + heads
    seen: list[int] = []
    seek = TiffImagePlugin.TiffImageFile._seek

    def counted(self: Any, frame: int) -> None:
        seen.append(frame)
        seek(self, frame)

    monkeypatch.setattr(TiffImagePlugin.TiffImageFile, "_seek", counted)
    with pytest.raises(ConfigError, match="several pictures in it"):
        read_picture("image", content)
    assert max(seen) <= 1  # to find all of them takes a time that grows with their square


def animation() -> bytes:
    frames = [two_colours(), two_colours().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    return content(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (content(two_colours())[:60], "damaged"),
        (content(two_colours(), "JPEG")[:300], "damaged|no picture"),
        (bomb(), f"at most {MAX_PIXELS}"),
        (animation(), "several pictures in it; give one"),
        (b"GIF89a", "no picture|damaged"),
        (b"", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n", "no picture"),
        (np.zeros((2, 2, 3)), "array .* of float64"),
        (np.zeros((2, 2, 5), np.uint8), "expected the path"),
        (np.zeros((0, 2, 3), np.uint8), "expected the path"),
        (content(Image.new("F", (2, 2)), "TIFF"), "floating-point"),
        ("/no/such/picture.png", "No such file"),
        ("\0.png", "cannot be read"),
        (7, "expected the path"),
    ],
)
def test_what_is_no_picture_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^image: .*({message})"):
        read("image", value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ConfigError, match="no regular file"):
        read("image", tmp_path / "pipe.png")


def test_a_record_names_a_picture_and_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content(two_colours()))
    picture = read("image", tmp_path / "a.png")
    known = read_record("image", picture.record())
    assert known == picture and not known.is_given and known.size == (4, 2)
    for wrong in (
        str(tmp_path / "a.png"),
        {"sha256": "0" * 63, "width": 1, "height": 1},
        {"sha256": "G" * 64, "width": 1, "height": 1},
        {**picture.record(), "width": True},
        {**picture.record(), "height": 0},
        {**picture.record(), "path": "/etc/passwd"},
    ):
        with pytest.raises(ConfigError, match=r"^image: "):
            read_record("image", wrong)


def test_a_picture_may_be_copied_and_compared() -> None:
    picture = read("image", two_colours())
    assert {picture: 1}[read("image", two_colours())] == 1
    assert picture != "picture" and "4x2" in repr(picture)
    assert Recorded(picture.sha256) == picture
