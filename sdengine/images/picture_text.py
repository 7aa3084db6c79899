"""Picture texts: what a PNG, JPEG or WebP file says beside its pixels, none of which is decoded."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from sdengine.errors import ConfigError
from sdengine.images.exif_text import JPEG_SIGNATURE, Damaged, jpeg_texts, webp_texts
from sdengine.images.png_text import PNG_SIGNATURE, png_texts
from sdengine.storage.regular_file import open_regular


def read_text(path: str | os.PathLike[str], keys: Collection[str]) -> dict[str, str | None]:
    """Read the texts of a picture that have one of the keys.

    Reads the texts alone, whatever size the picture claims.

    Args:
        path: of the file.
        keys: of the texts wanted: those of a PNG's text chunks, or EXIF's names of its tags.

    Returns:
        Texts by key, of several under one key the last; None for one of more than
        MAX_TEXT_BYTES, packed or unpacked.

    Raises:
        ConfigError: it is no file, not readable, no picture of these kinds, or damaged.
    """
    try:
        with open_regular(Path(path)) as file:
            return {key: text for key, text in _texts(file, keys).items() if key in keys}
    except Damaged as damage:
        raise ConfigError(f"from: {str(path)!r} is not a usable picture: {damage}.") from None
    except OSError as error:
        raise ConfigError(f"from: {str(path)!r} cannot be read: {error.strerror}.") from None
    except (TypeError, ValueError):  # no name, or a NUL in it
        raise ConfigError.for_field("from", path, "the name of a picture's file") from None


def _texts(file: BinaryIO, keys: Collection[str]) -> dict[str, str | None]:
    head = file.read(12)
    if head.startswith(PNG_SIGNATURE):
        file.seek(len(PNG_SIGNATURE))
        return png_texts(file, keys)
    if head.startswith(JPEG_SIGNATURE):
        file.seek(len(JPEG_SIGNATURE))
        return jpeg_texts(file)
    if head[:4] == b"RIFF" and head[8:] == b"WEBP":
        return webp_texts(file)
    raise Damaged("it does not begin as a PNG, JPEG or WebP file")
