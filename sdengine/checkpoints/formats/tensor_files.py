"""Tensor files of every format: listed, measured, and read one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from sdengine.errors import CheckpointError
from sdengine.models.dtypes import SAFETENSORS_DTYPES
from sdengine.storage.regular_file import open_regular
from sdengine.storage.torch_archive import TorchArchive

SAFETENSORS_ENDINGS = (".safetensors", ".sft")
PICKLE_ENDINGS = (".ckpt", ".bin", ".pt", ".pth")
ENDINGS = SAFETENSORS_ENDINGS + PICKLE_ENDINGS


class TensorFile(Protocol):
    """What every format can say; opening one reads names and sizes, never the numbers.

    Data types carry the names of the safetensors format: F16, BF16, F32, F64, I64...
    """

    path: Path
    metadata: Mapping[str, str]

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        ...

    def dtype(self, name: str) -> str:
        """Return the name of a tensor's data type."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor that shares memory with the mapped file.

        Raises:
            CheckpointError: it cannot be read.
        """
        ...


class SafetensorsFile:
    """A safetensors file; the library checks every offset against the file when it is opened.

    Raises:
        CheckpointError: the file is damaged, incomplete or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            open_regular(path).close()  # the library would wait for a pipe's writer
            handle: Any = safe_open(path, framework="pt")
            self._handle = handle
            self._names: list[str] = list(handle.keys())
            self.metadata: Mapping[str, str] = handle.metadata() or {}
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(
                f"{path}: not a complete safetensors file: {error}. Get the file again."
            ) from None

    def names(self) -> list[str]:
        """Return the names of all tensors."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._handle.get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """Return the name of a tensor's data type."""
        return str(self._handle.get_slice(name).get_dtype())

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor that shares memory with the mapped file."""
        try:
            tensor: torch.Tensor = self._handle.get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {name!r}: {error}.") from None
        return tensor


class PickleFile(TorchArchive):
    """A file of torch.save; see `TorchArchive`."""

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor that shares memory with the mapped file."""
        return torch.from_numpy(self.array(name)).view(SAFETENSORS_DTYPES[self.dtype(name)])


def open_tensor_file(path: Path) -> TensorFile:
    """Open a file of tensors in the format that its ending names.

    Raises:
        CheckpointError: the ending is unknown, or the file is damaged or refused.
    """
    ending = path.suffix.lower()
    if ending in SAFETENSORS_ENDINGS:
        return SafetensorsFile(path)
    if ending in PICKLE_ENDINGS:
        return PickleFile(path)
    raise CheckpointError(f"{path}: {ending or 'no ending'!r} is not among {', '.join(ENDINGS)}.")
