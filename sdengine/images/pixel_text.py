"""Pixel texts: what a picture says in the lowest bits of its pixels, where a site drops its chunks.

NovelAI and an extension of web UIs write there. Column by column, each pixel gives one bit of its
alpha, or one each of red, green and blue; from the highest bit of the first byte on: a signature of
15 bytes, the text's length in bits as a big-endian number of 32 bits, and the text in UTF-8, with
gzip around it where the signature says so. Source: the layout as NovelAI's own reader
(NovelAI/novelai-image-metadata) describes it.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.images.exif_text import MAX_TEXT_BYTES
from sdengine.inputs.picture import opened, read_file

# Larger pictures are not unpacked to look for a text.
_MAX_PIXELS = 1 << 25
_SIGNATURES = {
    "RGBA": {b"stealth_pnginfo": False, b"stealth_pngcomp": True},
    "RGB": {b"stealth_rgbinfo": False, b"stealth_rgbcomp": True},
}
_SIGNATURE_BYTES, _LENGTH_BYTES = 15, 4
_GZIP = 16 + zlib.MAX_WBITS


def pixel_text(path: str | os.PathLike[str]) -> str | None:
    """Return the text in a picture's pixels; None if there is none.

    Raises:
        ConfigError: the picture is damaged, or begins such a text that is cut, too long or no text.
    """
    content = read_file("from", Path(path))
    with opened("from", content, repr(str(path)[:200])) as image:
        if image.width * image.height > _MAX_PIXELS or image.mode not in ("RGB", "RGBA"):
            return None
        pixels = np.asarray(image)
    if pixels.shape[2] == 4:
        found = _read(pixels[..., 3].T.reshape(-1), _SIGNATURES["RGBA"])
        if found is not None:
            return found
    return _read(pixels[..., :3].transpose(1, 0, 2).reshape(-1), _SIGNATURES["RGB"])


def _read(values: NDArray[np.uint8], signatures: dict[bytes, bool]) -> str | None:
    """Read the text in the lowest bits of some values."""

    def part(first: int, count: int) -> bytes:
        return np.packbits(values[8 * first : 8 * (first + count)] & 1).tobytes()

    is_packed = signatures.get(part(0, _SIGNATURE_BYTES))
    if is_packed is None:
        return None
    begin = _SIGNATURE_BYTES + _LENGTH_BYTES
    length = int.from_bytes(part(_SIGNATURE_BYTES, _LENGTH_BYTES), "big") // 8
    if 8 * (begin + length) > len(values):
        raise ConfigError("the text in its pixels claims more bits than it has pixels for.")
    data = part(begin, length)
    if is_packed:
        data = _unpack(data)
    if len(data) > MAX_TEXT_BYTES:
        raise ConfigError(f"the text in its pixels has more than {MAX_TEXT_BYTES >> 20} MiB.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError("the text in its pixels is not UTF-8.") from None


def _unpack(data: bytes) -> bytes:
    unpacker = zlib.decompressobj(_GZIP)
    try:
        text = unpacker.decompress(data, MAX_TEXT_BYTES + 1)
    except zlib.error:
        raise ConfigError("the text in its pixels cannot be unpacked.") from None
    if not unpacker.eof and len(text) <= MAX_TEXT_BYTES:
        raise ConfigError("the text in its pixels ends early.")
    return text
