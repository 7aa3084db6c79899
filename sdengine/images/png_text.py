"""Text chunks of PNG files, read without decoding a pixel: the file is untrusted input.

Source: "Portable Network Graphics (PNG) Specification" (W3C), sections 5.3 for the layout of chunks
and 11.3.3 for tEXt, zTXt and iTXt.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from sdengine.errors import ConfigError
from sdengine.storage.regular_file import open_regular

MAX_TEXT_BYTES = 4 << 20
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_MAX_CHUNKS = 1 << 18
_MAX_LENGTH = (1 << 31) - 1


class _Damaged(Exception):
    pass


def read_text(path: str | os.PathLike[str], keys: Collection[str]) -> dict[str, str]:
    """Read the texts of a PNG that have one of the keys.

    Reads the text chunks alone, whatever size the picture claims. Texts of more than
    MAX_TEXT_BYTES, packed or unpacked, are passed over.

    Args:
        path: of the file.
        keys: of the texts wanted.

    Returns:
        Texts by key; of several under one key the last.

    Raises:
        ConfigError: it is no file, not readable, no PNG, or damaged.
    """
    try:
        with open_regular(Path(path)) as file:
            return _texts(file, keys)
    except _Damaged as damage:
        raise ConfigError(f"from: {str(path)!r} is not a usable PNG: {damage}.") from None
    except OSError as error:
        raise ConfigError(f"from: {str(path)!r} cannot be read: {error.strerror}.") from None
    except (TypeError, ValueError):  # no name, or a NUL in it
        raise ConfigError.for_field("from", path, "the name of a PNG file") from None


def _texts(file: BinaryIO, keys: Collection[str]) -> dict[str, str]:
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise _Damaged("it does not begin as one")
    size = os.fstat(file.fileno()).st_size
    found: dict[str, str] = {}
    for _ in range(_MAX_CHUNKS):
        header = file.read(8)
        if len(header) < 8:
            raise _Damaged("it ends before its last chunk")
        length, kind = struct.unpack(">I4s", header)
        if length > _MAX_LENGTH or file.tell() + length + 4 > size:
            raise _Damaged(f"a chunk claims {length} bytes, more than follow")
        if kind == b"IEND":
            return found
        decode = _DECODERS.get(kind)
        if decode is None or length > MAX_TEXT_BYTES:
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data = file.read(length)
        if file.read(4) != struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))):
            raise _Damaged("the checksum of a text does not agree")
        raw_key, separator, rest = data.partition(b"\0")
        key = raw_key.decode("latin-1")
        if separator and key in keys and (text := decode(rest)) is not None:
            found[key] = text
    raise _Damaged(f"it has more than {_MAX_CHUNKS} chunks")


def _plain(data: bytes) -> str:
    return data.decode("latin-1")


def _packed(data: bytes) -> str | None:
    unpacked = _unpack(data[:1], data[1:])
    return None if unpacked is None else unpacked.decode("latin-1")


def _international(data: bytes) -> str | None:
    flag, method = data[:1], data[1:2]
    parts = data[2:].split(b"\0", 2)  # language, translated key, text
    if flag not in (b"\0", b"\1") or len(parts) != 3:
        raise _Damaged("an international text has no such layout")
    text: bytes | None = parts[2]
    if flag == b"\1":
        text = _unpack(method, parts[2])
    try:
        return None if text is None else text.decode("utf-8")
    except UnicodeDecodeError:
        raise _Damaged("an international text is not UTF-8") from None


def _unpack(method: bytes, data: bytes) -> bytes | None:
    if method != b"\0":
        raise _Damaged("a text is packed in an unknown way")
    unpacker = zlib.decompressobj()
    try:
        text = unpacker.decompress(data, MAX_TEXT_BYTES)
    except zlib.error:
        raise _Damaged("a packed text cannot be unpacked") from None
    if unpacker.eof:
        return text
    if len(text) < MAX_TEXT_BYTES:
        raise _Damaged("a packed text ends early")
    return None


_DECODERS = {b"tEXt": _plain, b"zTXt": _packed, b"iTXt": _international}
