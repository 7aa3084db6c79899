"""Files of tensors as arrays: mapped, hashed, and read one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.adapters.sources.parameters import Parameters
from sdengine.adapters.sources.placement import EIGHT_BITS, Placement
from sdengine.adapters.sources.renaming import Renamer
from sdengine.errors import BundleError, CheckpointError
from sdengine.inputs.models import ENDINGS
from sdengine.storage.content_hash import HashedFile, hash_open_file
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import map_described, to_float32
from sdengine.storage.torch_archive import TorchArchive

Array = NDArray[Any]
_MAPPED = ENDINGS[:2]


class ArrayFile(Parameters):
    """A file whose tensors are arrays that share memory with it.

    Args:
        file: described; a safetensors file or an archive of torch.save.
        holder: the file, hashed.
        read: gives a tensor by name.
    """

    def __init__(self, file: Any, holder: HashedFile, read: Callable[[str], Array]) -> None:
        super().__init__(file)
        self.holder = holder
        self._read = read

    def array(self, name: str) -> Array:
        """Return a tensor, read-only: of bf16 its bits in uint16, of 8-bit floats fp16."""
        kind = self.dtype(name)
        values = self._read(self.stored(name))
        if kind in EIGHT_BITS:
            return EIGHT_BIT_VALUES[kind][values.view(np.uint8)]
        return values


class _Mapped:
    """A safetensors file, described."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_regular(path) as file:
            self.holder = hash_open_file(file, path)
            self._kinds, self.arrays, self.metadata = map_described(file, path)

    def names(self) -> list[str]:
        return list(self._kinds)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._kinds[name][1]

    def dtype(self, name: str) -> str:
        return self._kinds[name][0]


def open_arrays(path: Path) -> ArrayFile:
    """Open a file of tensors in the format that its ending names; nothing of it is run.

    Raises:
        CheckpointError: the ending is unknown, or the file is missing, damaged or refused.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise CheckpointError(
            f"{path}: {ending or 'no ending'!r} is not among {', '.join(ENDINGS)}."
        )
    try:
        if ending in _MAPPED:
            mapped = _Mapped(path)
            return ArrayFile(mapped, mapped.holder, mapped.arrays.__getitem__)
        with open_regular(path) as file:
            holder = hash_open_file(file, path)
        archive = TorchArchive(path)
        return ArrayFile(archive, holder, archive.array)
    except (OSError, BundleError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise CheckpointError(f"{path}: {reason}.") from None


class ArrayWeights(Placement[ArrayFile]):
    """The tensors of one network as arrays; see `Placement`."""

    def __init__(
        self,
        files: Sequence[Path],
        rename: Renamer,
        prefix: str = "",
        open_file: Callable[[Path], ArrayFile] = open_arrays,
    ) -> None:
        super().__init__(files, rename, prefix, open_file)

    def array(self, name: str) -> Array:
        """Return a tensor by its name in the network, in the type that it is stored in.

        Those in 8 bits come as what they stand for: fp16, or times their scale in fp32.
        """
        handle, stored, piece = self._places[name]
        values = handle.array(stored)
        scale = self._scales.get((handle.path, stored))
        if scale is not None:
            factors = to_float32(handle.array(scale))  # one, or one for each row
            values = to_float32(values) * factors.reshape(-1, *[1] * (values.ndim - 1))
        if piece.transposed:
            values = values.T
        if piece.parts > 1:
            rows = values.shape[0] // piece.parts
            values = values[piece.part * rows : (piece.part + 1) * rows]
        return values


def _e4m3(bits: int) -> float:
    """Return the number of 7 bits: 4 of exponent and 3 of mantissa, without infinity."""
    exponent, mantissa = bits >> 3, bits & 7
    if bits == 0x7F:
        return float("nan")
    if exponent == 0:
        return mantissa / 8 * 2.0**-6
    return (1 + mantissa / 8) * 2.0 ** (exponent - 7)


# What each byte stands for, which fp16 holds. Source: "FP8 Formats for Deep Learning" (Micikevicius
# et al. 2022), table 1.
EIGHT_BIT_VALUES = {
    "F8_E4M3": np.array([s * _e4m3(b) for s in (1.0, -1.0) for b in range(128)], np.float16),
    "F8_E5M2": (np.arange(256, dtype=np.uint16) << 8).view(np.float16),
}
