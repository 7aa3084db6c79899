"""Tensors of a torch zip archive (`.ckpt`, `.pt`, `.pth`, `.bin`) without running what it says.

A pickle is a program. Ours can make plain containers and views of the archive's own data; every
other class that it names becomes an inert object that ignores what is done to it, so that files
with a trainer's state in them still open. Nothing is imported and nothing is called.

Source: PEP 307 and the pickle module's documentation of `find_class` and `persistent_load`; the zip
layout of torch.save: `data.pkl` beside one stored file for each storage.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sdengine.errors import CheckpointError

_MAX_PICKLE_BYTES = 64 << 20
_MAX_MEMBERS = 100_000
_STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Inert:
    """Stand for an object of a class that is not made; forget everything."""

    def __new__(cls, *_: Any, **__: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass

    def __setitem__(self, *_: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Take part in a list's making."""

    def extend(self, _: Any) -> None:
        """Take part in a list's making."""


def read_pickled(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of an archive by name, mapped from the file and not copied.

    Args:
        path: what torch.save wrote: a dictionary of tensors, or one that holds it as "state_dict".

    Raises:
        CheckpointError: it is no such archive, damaged, or claims more than it holds.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename: info for info in archive.infolist()[: _MAX_MEMBERS + 1]}
            if len(infos) > _MAX_MEMBERS:
                raise CheckpointError(f"{path}: more than {_MAX_MEMBERS} members.")
            data = [name for name in infos if name.endswith("data.pkl")]
            if len(data) != 1 or infos[data[0]].file_size > _MAX_PICKLE_BYTES:
                raise CheckpointError(f"{path}: not an archive of torch.save, or one too large.")
            program = archive.open(data[0])
            storages = _Storages(path, infos, data[0].removesuffix("data.pkl"))
            content = _Unpickler(program, storages).load()
    except CheckpointError:
        raise
    except Exception as error:  # whatever a hostile program provokes, it is the file's fault
        raise CheckpointError(
            f"{path}: not a readable archive of torch.save: {type(error).__name__}: "
            f"{str(error)[:120]}. Save it as safetensors."
        ) from None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not tensors by name.")
    return {
        name: value
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


class _Storages:
    """Map the archive's storages, each checked against the member that holds it."""

    def __init__(self, path: Path, infos: Mapping[str, zipfile.ZipInfo], prefix: str) -> None:
        self._path = path
        self._infos = infos
        self._prefix = prefix
        self._mapped: dict[str, torch.Tensor] = {}

    def get(self, key: str, dtype: torch.dtype) -> torch.Tensor:
        """Return a storage as a flat tensor."""
        if key not in self._mapped:
            info = self._infos.get(f"{self._prefix}data/{key}")
            if info is None or info.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"{self._path}: storage {key[:40]!r} is missing or packed.")
            self._mapped[key] = self._map(info)
        flat = self._mapped[key]
        if flat.numel() % dtype.itemsize:
            raise CheckpointError(f"{self._path}: storage {key[:40]!r} is no {dtype}.")
        return flat.view(dtype)

    def _map(self, info: zipfile.ZipInfo) -> torch.Tensor:
        if info.file_size == 0:
            return torch.empty(0, dtype=torch.uint8)
        with self._path.open("rb") as file:
            file.seek(info.header_offset + 26)  # lengths of name and extra field, local header
            name, extra = np.frombuffer(file.read(4), "<u2")
        offset = info.header_offset + 30 + int(name) + int(extra)
        if offset + info.file_size > self._path.stat().st_size:
            raise CheckpointError(f"{self._path}: a storage reaches beyond the end of the file.")
        # Copy on write: torch knows no read-only memory, and nothing writes.
        view = np.memmap(self._path, np.uint8, mode="c", offset=offset, shape=(info.file_size,))
        return torch.from_numpy(view)


class _Unpickler(pickle.Unpickler):
    def __init__(self, program: Any, storages: _Storages) -> None:
        super().__init__(program)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return _rebuild_parameter
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        return type(f"Inert_{name[:40]}", (_Inert,), {})

    def persistent_load(self, pid: Any) -> torch.Tensor:
        kind, dtype, key, _, _ = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise CheckpointError("a storage of an unknown kind")
        return self._storages.get(key, dtype)


def _rebuild_tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    if not isinstance(storage, torch.Tensor) or len(size) != len(stride) or offset < 0:
        raise CheckpointError("a tensor without a storage")
    if any(s < 0 for s in (*size, *stride)):
        raise CheckpointError("a tensor of negative size")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel():
        raise CheckpointError("a tensor larger than its storage")
    return storage.as_strided(size, stride, offset)


def _rebuild_parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    return data
