"""Tensor files in the safetensors format: written whole, mapped, checked as untrusted input.

Unlike the safetensors package, which copies every tensor and has no bf16 in NumPy, nothing is read
before it is used. Source: the format's description in the safetensors repository.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import BundleError
from sdengine.storage.regular_file import open_regular
from sdengine.storage.whole_file import whole_file

Array = NDArray[Any]
Kinds = dict[str, tuple[str, tuple[int, ...]]]
MAX_HEADER_BYTES = 16 << 20
_ALIGNMENT = 64
_MAX_DIMENSIONS = 32
# By the format's names. NumPy has neither bf16 nor fp8: their bits are taken as integers.
NUMPY_DTYPES: Mapping[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "F8_E4M3": "|u1", "F8_E5M2": "|u1",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
# In the files of a bundle, where uint16 is always bf16.
_OF_BUNDLES = ("F32", "F16", "BF16", "I32", "U8")
# In those of others, as far as weights are stored in them.
OF_WEIGHTS = ("F64", "F32", "F16", "BF16", "I64", "I32")


def map_tensors(path: Path) -> dict[str, Array]:
    """Map a file and return its tensors, read-only, by name; BF16 as its bits in uint16.

    Raises:
        BundleError: it cannot be read, or its header claims what is not there.
    """
    try:
        with open_regular(path) as file:
            return map_open_tensors(file, path)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None


def map_open_tensors(file: BinaryIO, path: Path) -> dict[str, Array]:
    """Map a file that is open, and may be closed afterwards; see `map_tensors`."""
    return map_open_file(file, path, _OF_BUNDLES)[0]


def map_open_file(
    file: BinaryIO, path: Path, dtypes: Sequence[str] = OF_WEIGHTS
) -> tuple[dict[str, Array], dict[str, str]]:
    """Map an open file; return its tensors as `map_tensors` does, and its metadata.

    Args:
        file: open; it may be closed afterwards.
        path: of it.
        dtypes: names of the data types that are accepted.

    Raises:
        BundleError: as for `map_tensors`.
    """
    _, tensors, metadata = map_described(file, path, dtypes)
    return tensors, metadata


def map_described(
    file: BinaryIO, path: Path, dtypes: Sequence[str] = tuple(NUMPY_DTYPES)
) -> tuple[Kinds, dict[str, Array], dict[str, str]]:
    """Map an open file; return type and shape of each tensor, the tensors, and the metadata.

    Args:
        file, path, dtypes: as for `map_open_file`; of 8-bit floats the tensors hold the bits.

    Raises:
        BundleError: as for `map_tensors`.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        if size < 10:
            raise BundleError(f"{path}: {size} bytes are no file of tensors.")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None
    header, metadata, start = _read_header(path, mapped, size)
    data = np.frombuffer(mapped, np.uint8)[start:]
    kinds: Kinds = {}
    tensors = {}
    end = 0
    for name, entry in header.items():
        kind, shape, (first, last) = _entry(path, name, entry, dtypes)
        dtype = np.dtype(NUMPY_DTYPES[kind])
        if first != end or last - first != tensor_bytes(kind, shape) or last > len(data):
            raise BundleError(
                f"{path}: tensor {name!r} is {kind} {list(shape)} at bytes {first} to {last} of "
                f"{len(data)}; the file is incomplete or altered."
            )
        end = last
        flat = data[first:last]
        if (start + first) % dtype.itemsize:
            flat = flat.copy()
        kinds[name] = kind, shape
        tensors[name] = flat.view(dtype).reshape(shape)
    if end != len(data):
        raise BundleError(f"{path}: {len(data) - end} bytes belong to no tensor.")
    return kinds, tensors, metadata


def read_metadata(file: BinaryIO, path: Path) -> dict[str, str]:
    """Return what an open file says of itself; no tensor is looked at.

    Raises:
        BundleError: it has no header of the format.
    """
    size = os.fstat(file.fileno()).st_size
    if size < 10:
        raise BundleError(f"{path}: {size} bytes are no file of tensors.")
    head = file.read(8)
    (length,) = struct.unpack("<Q", head)
    return _read_header(path, head + file.read(min(length, MAX_HEADER_BYTES)), size)[1]


def write_tensors(
    path: Path,
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Array]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a file, whole or not at all, from tensors that come in any order.

    Args:
        path: where; its folder must exist.
        kinds: type and shape of every tensor, in the order in which they shall lie.
        tensors: each of them once; of BF16 the bits in uint16.
        metadata: what other programs want to be told, such as {"format": "pt"}.

    Raises:
        OSError: it cannot be written.
    """
    text, places = tensor_header(kinds, metadata)
    start = len(text)
    with whole_file(path) as file:
        file.truncate(start + sum(size for _, size in places.values()))  # counted from now on
        file.write(text)
        missing = set(kinds)
        for name, tensor in tensors:
            missing.remove(name)
            first, size = places[name]
            if tensor.nbytes != size:
                raise ValueError(f"{name}: {tensor.nbytes} bytes for {size}")
            file.seek(start + first)
            np.ascontiguousarray(tensor).tofile(file)
        if missing:
            raise ValueError(f"not given: {', '.join(sorted(missing)[:5])}")


def tensor_header(
    kinds: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None = None
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Return what a file begins with, and each tensor's first byte after that and its bytes."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    places = {}
    end = 0
    for name, (kind, shape) in kinds.items():
        size = tensor_bytes(kind, shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [end, end + size]}
        places[name] = (end, size)
        end += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % _ALIGNMENT)
    return struct.pack("<Q", len(text)) + text, places


def tensor_bytes(kind: str, shape: tuple[int, ...]) -> int:
    """Return the size of a tensor, its kind as files name it: "F32", "BF16", "U8"..."""
    return math.prod(shape) * np.dtype(NUMPY_DTYPES[kind]).itemsize


def to_bf16_bits(values: Array) -> Array:
    """Round fp32 to the bits of bf16 in uint16: ties to the even number, NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # The addition could carry a NaN into infinity or zero.
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def to_float32(values: Array) -> Array:
    """Return fp32 from other floats, or from the bits of bf16."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)


def _read_header(
    path: Path, mapped: mmap.mmap | bytes, size: int
) -> tuple[dict[str, Any], dict[str, str], int]:
    (length,) = struct.unpack("<Q", mapped[:8])
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise BundleError(f"{path}: a header of {length} bytes in a file of {size}.")
    try:
        header = json.loads(mapped[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: the header is not JSON: {error}.") from None
    if not isinstance(header, dict):
        raise BundleError(f"{path}: the header is not an object.")
    metadata = header.pop("__metadata__", None)
    told = metadata.items() if isinstance(metadata, dict) else ()
    texts = {key: value for key, value in told if isinstance(value, str)}

    def first_byte(item: tuple[str, Any]) -> int:
        offsets = item[1].get("data_offsets") if isinstance(item[1], dict) else None
        good = isinstance(offsets, list) and len(offsets) == 2 and type(offsets[0]) is int
        return int(offsets[0]) if good and offsets is not None else -1

    return dict(sorted(header.items(), key=first_byte)), texts, 8 + length


def _entry(
    path: Path, name: str, entry: Any, dtypes: Sequence[str]
) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    if isinstance(entry, dict) and entry.keys() == {"dtype", "shape", "data_offsets"}:
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2
        numbers = (*shape, *offsets) if whole and len(shape) <= _MAX_DIMENSIONS else (None,)
        if all(type(n) is int and 0 <= n < 1 << 60 for n in numbers) and (
            math.prod(n or 1 for n in shape) < 1 << 60  # also of what is empty
        ):
            if isinstance(kind, str) and kind in dtypes:
                return kind, tuple(shape), (offsets[0], offsets[1])
            raise BundleError(f"{path}: tensor {name!r} is {kind!r}, which no weight is.")
    raise BundleError(f"{path}: the entry of tensor {name!r} is malformed.")
