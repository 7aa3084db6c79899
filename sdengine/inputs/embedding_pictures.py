"""Embeddings in pictures: as a PNG's text, or in the low bits of pixels at both sides of it.

Source: the pictures of embeddings that the Stable Diffusion web UI writes. The text is base64 of
JSON. In pixels the JSON is compressed, and each byte divided: its low half lies in the low four
bits of a block left of the picture, its high half in one right of it, both masked by the numbers of
a linear congruential generator; a black column stands between each block and the picture.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import ConfigError
from sdengine.inputs.picture import opened

TEXT_KEY = "sd-ti-embedding"
MAX_JSON_BYTES = 8 << 20  # 75 vectors of 2048 numbers in full length take half of it
_TENSOR = "TORCHTENSOR"
_MULTIPLIER, _INCREMENT = 1664525, 1013904223
_MAX_TENSORS = 16


def read_picture_content(field: str, content: bytes, what: str) -> dict[str, Any] | None:
    """Return the JSON object that a picture holds, with every tensor as an array of float64.

    Args:
        field, what: what errors call the request's field and the file.
        content: of the file.

    Returns:
        None where it is a picture and nothing more.

    Raises:
        ConfigError: it is no picture, or what it holds is damaged.
    """
    with opened(field, content, what) as image:
        image.load()
        text = getattr(image, "text", {}).get(TEXT_KEY)
        if text is not None:
            found = _from_base64(str(text))
        else:
            hidden = _hidden(np.asarray(image.convert("RGB")))
            if hidden is None:
                return None
            found = hidden
    try:
        if len(found) > MAX_JSON_BYTES:
            raise ValueError(f"more than {MAX_JSON_BYTES >> 20} MiB of JSON")
        read = json.loads(found)
        if not isinstance(read, dict):
            raise ValueError("not a JSON object")
        return _with_arrays(read)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{field}: {what}: the embedding in it is damaged: {str(error)[:120]}."
        ) from None


def _from_base64(text: str) -> bytes:
    if len(text) > MAX_JSON_BYTES * 4 // 3 + 4:
        return b" " * (MAX_JSON_BYTES + 1)  # which the caller refuses
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _hidden(pixels: NDArray[np.uint8]) -> bytes | None:
    """Return what two blocks of pixels hold, or None where there are none."""
    bright: NDArray[np.bool_] = np.all(pixels > 0, axis=2)
    if not bright.any():
        return None
    columns, rows = (np.flatnonzero(np.any(bright, axis=axis)) for axis in (0, 1))
    low = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] & 0x0F
    black = np.flatnonzero(~low.any(axis=(0, 2)))
    if len(black) < 2 or black[0] == 0 or black[-1] == low.shape[1] - 1:
        return None
    left, right = low[:, : black[0]], low[:, black[-1] + 1 :]
    if left.shape != right.shape:
        return None
    mask = _masks(min(left.size, MAX_JSON_BYTES))  # what was compressed is no longer than that
    low_half, high_half = (half.ravel()[: len(mask)] ^ mask for half in (left, right))
    data = low_half | (high_half << 4)
    unpacker = zlib.decompressobj()
    try:
        found = unpacker.decompress(data.tobytes(), MAX_JSON_BYTES + 1)
    except zlib.error:
        return None  # two dark columns in any picture
    return found if unpacker.eof or len(found) > MAX_JSON_BYTES else None


def _masks(count: int) -> NDArray[np.uint8]:
    """Return the first numbers of the generator modulo 255, four bits of each.

    x[k+m] follows from x[k] as x[k+1] does, by a multiplier and an increment of their own: so every
    pass makes as many numbers as there are.
    """
    multiplier, increment, modulus = _MULTIPLIER, _INCREMENT, 1 << 32
    numbers = np.array([increment], np.uint64)  # after 0
    while len(numbers) < count:
        further = (numbers * np.uint64(multiplier) + np.uint64(increment)) & np.uint64(modulus - 1)
        numbers = np.concatenate([numbers, further])
        increment = (multiplier * increment + increment) % modulus
        multiplier = multiplier * multiplier % modulus
    return np.asarray(numbers[:count] % np.uint64(255) & np.uint64(0x0F), np.uint8)


def _with_arrays(content: dict[str, Any]) -> dict[str, Any]:
    """Return the object with arrays in the place of its tensors, which lie at most two deep."""
    left = _MAX_TENSORS

    def made(value: Any, depth: int) -> Any:
        nonlocal left
        if not isinstance(value, dict):
            return value
        if _TENSOR in value:
            left -= 1
            if left < 0:
                raise ValueError(f"more than {_MAX_TENSORS} tensors")
            return _array(value[_TENSOR])
        return {k: made(v, depth - 1) for k, v in value.items()} if depth else value

    return {key: made(value, 2) for key, value in content.items()}


def _array(values: Any) -> NDArray[np.float64]:
    """Return nested lists of numbers as an array; text, of which NumPy makes numbers, is none."""
    flat = values if isinstance(values, list) else [values]
    while flat and isinstance(flat[0], list):
        if not all(isinstance(row, list) for row in flat):
            raise ValueError("a tensor is no table of numbers")
        flat = [one for row in flat for one in row]
    if not all(type(one) in (int, float) for one in flat):
        raise ValueError("a tensor holds what is no number")
    try:
        return np.array(values, np.float64)
    except (ValueError, OverflowError):
        raise ValueError("a tensor is no table of numbers") from None
