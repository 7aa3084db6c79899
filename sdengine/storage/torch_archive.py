"""Archives of torch.save, in its zip format or the older plain one.

The tensors are views of the mapped file, made only after a size has been checked against what the
file holds. Nothing is unpacked: torch.save stores its entries uncompressed, so a compressed entry
is refused, and with it every zip bomb.

`torch.load(weights_only=True, mmap=True)` would also do. It is not used because its list of what
may be built grows with torch, it imports what a pickle names of torch's own types, and it refuses
the published files of Stable Diffusion 1, which hold a training framework's callbacks.

Source: the documentation of `torch.save` and the layout that `torch.serialization` documents.
"""

from __future__ import annotations

import io
import math
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import CheckpointError
from sdengine.storage.pickle_reader import StorageRecord, TensorRecord, read_pickle
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import NUMPY_DTYPES

_MAX_PICKLE_BYTES = 64 << 20
_MAX_ENTRIES = 1 << 20
_MAX_DIMENSIONS = 8
_MAX_CLAIM = 1 << 48  # of a tensor that is empty, or of a step that none of its numbers takes
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, then the lengths of name and extra field
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
# Where the weights lie when the file holds more than them.
_NESTS = ("state_dict", "model")


class TorchFile:
    """A file of torch.save, opened without running anything that it says.

    `content` is what its pickle describes: dicts, lists, literals, and for every tensor a
    `TensorRecord`, whose claims `array` checks.

    Raises:
        CheckpointError: it is damaged or refused.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                size = file.seek(0, io.SEEK_END)
                # A private mapping, because torch wants memory that it could write to.
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}.") from None
        try:
            is_zip = self._map[:4] == b"PK\x03\x04"
            self.content, self._spans = (_read_zip if is_zip else _read_legacy)(path, self._map)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}.") from None

    def array_of(self, name: str, record: TensorRecord) -> NDArray[Any]:
        """Return a tensor that shares memory with the mapped file; of BF16 and F8 its bits.

        Args:
            name: what errors call it.
            record: of `content`.

        Raises:
            CheckpointError: it reaches out of its storage, or makes more of it than is there.
        """
        try:
            _check(name, record, self._spans)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {error}.") from None
        dtype = np.dtype(NUMPY_DTYPES[record.storage.dtype])
        if not record.storage.numel:
            return np.empty(record.shape, dtype)
        start, _ = self._spans[record.storage.key]
        flat = np.frombuffer(self._map, dtype, record.storage.numel, start)[record.offset :]
        strides = [step * dtype.itemsize for step in record.stride]
        return np.lib.stride_tricks.as_strided(flat, record.shape, strides)


class TorchArchive(TorchFile):
    """A file of torch.save that holds named tensors, each checked when it is opened.

    Raises:
        CheckpointError: as for `TorchFile`; a size in it does not fit the file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._tensors = _tensors(self.content)
            for name, record in self._tensors.items():
                _check(name, record, self._spans)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}.") from None
        step = self.content.get("global_step") if isinstance(self.content, dict) else None
        self.metadata: Mapping[str, str] = {"global_step": str(step)} if type(step) is int else {}

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return self._tensors[name].shape

    def dtype(self, name: str) -> str:
        """Return the name of a tensor's data type."""
        return self._tensors[name].storage.dtype

    def array(self, name: str) -> NDArray[Any]:
        """Return a tensor that shares memory with the mapped file; of BF16 and F8 its bits."""
        return self.array_of(name, self._tensors[name])


def _read_zip(path: Path, data: mmap.mmap) -> tuple[Any, dict[str, tuple[int, int]]]:
    """Return what data.pkl describes, and for each storage its first byte and its length."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        raise CheckpointError(f"not a complete archive of torch.save: {error}") from None
    spans: dict[str, tuple[int, int]] = {}
    for entry in entries[:_MAX_ENTRIES]:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise CheckpointError(f"entry {entry.filename[:80]!r} is compressed or encrypted")
        # torch.save puts everything into one folder; its name does not matter.
        name = entry.filename.partition("/")[2]
        if name in spans:
            raise CheckpointError(f"entry {entry.filename[:80]!r} is there twice")
        spans[name] = _span(entry, data)
    if "data.pkl" not in spans:
        raise CheckpointError("it is a zip file, but not one of torch.save")
    if "byteorder" in spans and _bytes(data, spans["byteorder"]) == b"big":
        raise CheckpointError("its numbers are in big-endian order, which is not supported")
    if spans["data.pkl"][1] > _MAX_PICKLE_BYTES:
        raise CheckpointError(f"its pickle is larger than {_MAX_PICKLE_BYTES} bytes")
    content = read_pickle(io.BytesIO(_bytes(data, spans["data.pkl"])))
    prefix = "data/"
    return content, {n.removeprefix(prefix): s for n, s in spans.items() if n.startswith(prefix)}


def _span(entry: zipfile.ZipInfo, data: mmap.mmap) -> tuple[int, int]:
    header = data[entry.header_offset : entry.header_offset + _LOCAL_HEADER.size]
    if len(header) == _LOCAL_HEADER.size:
        signature, name_length, extra_length = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if signature == b"PK\x03\x04" and start + entry.file_size <= len(data):
            return start, entry.file_size
    raise CheckpointError(f"entry {entry.filename[:80]!r} claims what the file does not hold")


def _bytes(data: mmap.mmap, span: tuple[int, int]) -> bytes:
    return data[span[0] : span[0] + span[1]]


def _read_legacy(path: Path, data: mmap.mmap) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same for the format before torch 1.6: five pickles, then the storages in a row."""
    file = io.BytesIO(data[:_MAX_PICKLE_BYTES])
    if data[:1] != b"\x80" or read_pickle(file) != _LEGACY_MAGIC:
        raise CheckpointError("not a file of torch.save, or cut off")
    if read_pickle(file) != _LEGACY_PROTOCOL:
        raise CheckpointError("of an unknown version of torch.save")
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError("its numbers are in big-endian order, which is not supported")
    storages: dict[str, StorageRecord] = {}
    content, keys = read_pickle(file, storages), read_pickle(file)
    if not isinstance(keys, list) or len(keys) > _MAX_ENTRIES:
        raise CheckpointError("its list of storages is none")
    spans, place = {}, file.tell()
    for key in keys:
        if type(key) is not str or key not in storages or place + 8 > len(data):
            raise CheckpointError("its list of storages does not fit its tensors")
        numel = int.from_bytes(data[place : place + 8], "little", signed=True)
        length = numel * _item_bytes(storages[key])
        if numel < 0 or place + 8 + length > len(data):
            raise CheckpointError(f"storage {key[:40]!r} claims {numel} numbers, past the end")
        spans[key] = (place + 8, length)
        place += 8 + length
    return content, spans


def _tensors(content: Any) -> dict[str, TensorRecord]:
    for nest in _NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
    if not isinstance(content, dict):
        raise CheckpointError(f"it holds a {type(content).__name__}, not named tensors")
    return {
        name: value
        for name, value in content.items()
        if type(name) is str and isinstance(value, TensorRecord)
    }


def _check(name: str, record: TensorRecord, spans: Mapping[str, tuple[int, int]]) -> None:
    """Refuse a tensor that reaches out of its storage or makes more of it than is there."""
    storage: StorageRecord = record.storage
    held = spans.get(storage.key, (0, -1))[1]
    if storage.numel * _item_bytes(storage) != held:
        raise CheckpointError(
            f"tensor {name[:80]!r} claims a storage of {storage.numel} numbers; the file holds "
            f"{max(held, 0)} bytes of it"
        )
    sizes, strides = record.shape, record.stride
    fits = (
        len(sizes) == len(strides) <= _MAX_DIMENSIONS
        and all(0 <= n < _MAX_CLAIM for n in (record.offset, *sizes, *strides))
        and math.prod(n or 1 for n in sizes) < _MAX_CLAIM
    )
    numel = math.prod(sizes) if fits else 0
    fits = fits and numel <= storage.numel
    if fits and numel:
        last = record.offset + sum((n - 1) * s for n, s in zip(sizes, strides, strict=True))
        fits = last < storage.numel
    if not fits:
        raise CheckpointError(f"tensor {name[:80]!r} reaches out of its storage")


def _item_bytes(storage: StorageRecord) -> int:
    return np.dtype(NUMPY_DTYPES[storage.dtype]).itemsize
