"""EXIF texts of JPEG and WebP files, read without decoding a pixel: the file is untrusted input.

Source: "Exchangeable image file format for digital still cameras" (CIPA DC-008), sections 4.5 for
the layout and 4.6.5 for UserComment; ITU-T T.81, annex B, for JPEG's segments; "WebP Container
Specification" for its chunks.
"""

from __future__ import annotations

import os
import struct
from typing import BinaryIO

MAX_TEXT_BYTES = 4 << 20
JPEG_SIGNATURE = b"\xff\xd8"
COMMENT = "UserComment"
_HEADER = b"Exif\0\0"
_MAX_SEGMENTS = 1 << 12
_MAX_ENTRIES = 1 << 12
_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_TEXT_TYPES = (1, 2, 7)  # of one byte each: BYTE, ASCII, UNDEFINED
_EXIF_POINTER, _USER_COMMENT = 0x8769, 0x9286
_TEXTS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model", 0x0131: "Software"}


class Damaged(Exception):
    """Report what is wrong with a file, in words that follow its name."""


def jpeg_texts(file: BinaryIO) -> dict[str, str | None]:
    """Return the texts of the first EXIF segment; the file is behind its signature.

    Raises:
        Damaged: the file is.
    """
    for _ in range(_MAX_SEGMENTS):
        marker = file.read(2)
        while marker == b"\xff\xff":  # filling
            marker = marker[1:] + file.read(1)
        if len(marker) < 2 or marker[0] != 0xFF:
            raise Damaged("its segments do not follow each other")
        if marker[1] in (0xD9, 0xDA):  # the end, or the pixels
            return {}
        if marker[1] == 0x01 or 0xD0 <= marker[1] <= 0xD7:
            continue  # without a content
        length = int.from_bytes(file.read(2), "big") - 2
        content = file.read(max(length, 0))
        if length < 0 or len(content) < length:
            raise Damaged("a segment claims more bytes than follow")
        if marker[1] == 0xE1 and content.startswith(_HEADER):
            return tiff_texts(content.removeprefix(_HEADER))
    raise Damaged(f"it has more than {_MAX_SEGMENTS} segments before its pixels")


def webp_texts(file: BinaryIO) -> dict[str, str | None]:
    """Return the texts of the EXIF chunk; the file is behind the 12 bytes of its header.

    Raises:
        Damaged: the file is.
    """
    size = os.fstat(file.fileno()).st_size
    for _ in range(_MAX_SEGMENTS):
        header = file.read(8)
        if not header:
            return {}
        if len(header) < 8:
            raise Damaged("it ends within a chunk")
        kind, length = struct.unpack("<4sI", header)
        if file.tell() + length > size:
            raise Damaged(f"a chunk claims {length} bytes, more than follow")
        if kind != b"EXIF":
            file.seek(length + length % 2, os.SEEK_CUR)
        elif length > MAX_TEXT_BYTES:
            return {COMMENT: None}
        else:
            return tiff_texts(file.read(length).removeprefix(_HEADER))
    raise Damaged(f"it has more than {_MAX_SEGMENTS} chunks")


def tiff_texts(data: bytes) -> dict[str, str | None]:
    """Return the texts in the content of an EXIF segment, by the standard's names of their tags.

    Args:
        data: of a bounded length; every place in it is checked.

    Raises:
        Damaged: it is no EXIF, or a text is not what it says.
    """
    order = _ORDERS.get(data[:4])
    if order is None or len(data) < 8:
        raise Damaged("its EXIF does not begin as one")
    found: dict[str, str | None] = {}
    first = _directory(data, order, *struct.unpack(order + "I", data[4:8]))
    for tag, name in _TEXTS.items():
        if tag in first:
            found[name] = _decoded(first[tag], "utf-8")
    if (pointer := first.get(_EXIF_POINTER)) is not None:
        inner = _directory(data, order, struct.unpack(order + "I", pointer)[0])
        if _USER_COMMENT in inner:
            found[COMMENT] = _comment(inner[_USER_COMMENT])
    return found


def _directory(data: bytes, order: str, place: int) -> dict[int, bytes]:
    """Return the texts and pointers of one directory, by tag; the next one is not followed."""
    if place + 2 > len(data):
        raise Damaged("its EXIF points behind its end")
    (count,) = struct.unpack_from(order + "H", data, place)
    if count > _MAX_ENTRIES or place + 2 + 12 * count > len(data):
        raise Damaged(f"its EXIF claims {count} entries")
    found = {}
    for index in range(count):
        start = place + 2 + 12 * index
        tag, kind, length = struct.unpack_from(order + "HHI", data, start)
        if tag == _EXIF_POINTER:
            found[tag] = data[start + 8 : start + 12]
        elif kind in _TEXT_TYPES and tag in (*_TEXTS, _USER_COMMENT):
            (offset,) = struct.unpack_from(order + "I", data, start + 8)
            offset = start + 8 if length <= 4 else offset
            if offset + length > len(data):
                raise Damaged("a text of its EXIF claims more bytes than there are")
            found[tag] = data[offset : offset + length]
    return found


def _comment(data: bytes) -> str:
    """Decode a comment by the eight bytes that name its code."""
    code, text = data[:8], data[8:]
    if code == b"UNICODE\0":
        return _decoded(text, _utf_16(text))
    if code in (b"ASCII\0\0\0", bytes(8)):
        return _decoded(text, "utf-8")
    if code.startswith(b"JIS"):
        raise Damaged("its comment is in JIS, which is not read")
    return _decoded(data, "utf-8")  # some tools name no code


def _utf_16(text: bytes) -> str:
    """Tell the order of the bytes: tools follow their own habit and not that of the directory."""
    if text[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16"
    return "utf-16-be" if text[::2].count(0) >= text[1::2].count(0) else "utf-16-le"


def _decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding).rstrip("\0")
    except UnicodeDecodeError:
        raise Damaged("a text of its EXIF is not in the code that it names") from None
