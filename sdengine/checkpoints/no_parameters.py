"""Files of parameters, as torch reads them."""

from __future__ import annotations

from pathlib import Path

import torch

from sdengine.adapters.sources.parameters import Parameters
from sdengine.checkpoints.formats.tensor_files import TensorFile, open_tensor_file


class ParameterFile(Parameters):
    """A tensor file of which only what may be a parameter is listed and read; see `Parameters`."""

    def __init__(self, file: TensorFile, own: tuple[str, ...] = ()) -> None:
        super().__init__(file, own)
        self._file = file

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor that shares memory with the mapped file."""
        return self._file.read(self.stored(name))


def open_parameters(path: Path, own: tuple[str, ...] = ()) -> ParameterFile:
    """Open a file of tensors in the format that its ending names; `own` as for `Parameters`.

    Raises:
        CheckpointError: the ending is unknown, or the file is damaged or refused.
    """
    return ParameterFile(open_tensor_file(path), own)
