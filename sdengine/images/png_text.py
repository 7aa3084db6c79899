"""Text chunks of PNG files, read without decoding a pixel: the file is untrusted input.

Source: "Portable Network Graphics (PNG) Specification" (W3C), sections 5.3 for the layout of chunks
and 11.3.3 for tEXt, zTXt and iTXt.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection
from typing import BinaryIO

from sdengine.images.exif_text import COMMENT, MAX_TEXT_BYTES, Damaged, tiff_texts

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 1 << 18
_MAX_LENGTH = (1 << 31) - 1
_MAX_KEY_BYTES = 80


def png_texts(file: BinaryIO, keys: Collection[str]) -> dict[str, str | None]:
    """Return the texts that have one of the keys; the file is behind its signature.

    Of several texts under one key the last counts. One of more than MAX_TEXT_BYTES, packed or
    unpacked, is None.

    Raises:
        Damaged: the file is.
    """
    size = os.fstat(file.fileno()).st_size
    found: dict[str, str | None] = {}
    for _ in range(_MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            raise Damaged("it ends before its last chunk")
        length, kind = struct.unpack(">I4s", header)
        end = file.tell() + length + 4
        if length > _MAX_LENGTH or end > size:
            raise Damaged(f"a chunk claims {length} bytes, more than follow")
        if kind == b"IEND":
            return found
        if kind in _DECODERS and length > MAX_TEXT_BYTES:
            key = file.read(_MAX_KEY_BYTES).partition(b"\0")[0].decode("latin-1")
            if key in keys:
                found[key] = None
        elif kind in _DECODERS or (kind == b"eXIf" and length <= MAX_TEXT_BYTES):
            data = file.read(length)
            if file.read(4) != struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))):
                raise Damaged("the checksum of a text does not agree")
            found |= _decoded(kind, data, keys)
        file.seek(end)
    raise Damaged(f"it has more than {_MAX_CHUNKS} chunks")


def _decoded(kind: bytes, data: bytes, keys: Collection[str]) -> dict[str, str | None]:
    if kind == b"eXIf":
        return tiff_texts(data) if COMMENT in keys else {}
    raw_key, separator, rest = data.partition(b"\0")
    key = raw_key.decode("latin-1")
    return {key: _DECODERS[kind](rest)} if separator and key in keys else {}


def _plain(data: bytes) -> str | None:
    return data.decode("latin-1")


def _packed(data: bytes) -> str | None:
    unpacked = _unpack(data[:1], data[1:])
    return None if unpacked is None else unpacked.decode("latin-1")


def _international(data: bytes) -> str | None:
    flag, method = data[:1], data[1:2]
    parts = data[2:].split(b"\0", 2)  # language, translated key, text
    if flag not in (b"\0", b"\1") or len(parts) != 3:
        raise Damaged("an international text has no such layout")
    text: bytes | None = parts[2]
    if flag == b"\1":
        text = _unpack(method, parts[2])
    try:
        return None if text is None else text.decode("utf-8")
    except UnicodeDecodeError:
        raise Damaged("an international text is not UTF-8") from None


def _unpack(method: bytes, data: bytes) -> bytes | None:
    if method != b"\0":
        raise Damaged("a text is packed in an unknown way")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT_BYTES)
    except zlib.error:
        raise Damaged("a packed text cannot be unpacked") from None
    if unpacker.eof:
        return text
    if len(text) < MAX_TEXT_BYTES:
        raise Damaged("a packed text ends early")
    return None


_DECODERS = {b"tEXt": _plain, b"zTXt": _packed, b"iTXt": _international}
