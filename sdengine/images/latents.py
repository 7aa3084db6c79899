"""Latents of one picture, kept in a file of a byte a value: the VAE as a codec."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import BundleError, ConfigError, OutputError
from sdengine.storage.tensor_file import map_tensors, write_tensors

_LEVELS = 255
_ENDING = ".safetensors"
_MAX_VALUES = 1 << 24


@dataclass(frozen=True, eq=False)
class Latents:
    """What a VAE makes of a picture; another model's VAE reads something else from it.

    Args:
        values: [C,h,w] fp32, scaled as the U-Net sees them.
        size: width and height of the picture in pixels; the latents may be of a padded one.
        model_hash: SHA-256 of the checkpoint, perhaps empty.
    """

    values: NDArray[np.float32] = field(repr=False)
    size: tuple[int, int]
    model_hash: str

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Write a safetensors file, whole or not at all.

        Each channel's values become 256 even levels from its least to its greatest.

        Raises:
            ConfigError: the path does not end in .safetensors.
            OutputError: the file is there and shall not be replaced, or cannot be written.
        """
        target = Path(path)
        if target.suffix != _ENDING:
            raise ConfigError.for_field("path", str(path), f"a file name ending in {_ENDING}")
        if not overwrite and os.path.lexists(target):
            raise OutputError(f"{target}: it is there already; give another name, or overwrite.")
        low = self.values.min(axis=(1, 2))
        step = (self.values.max(axis=(1, 2)) - low) / np.float32(_LEVELS)
        shares = (self.values - low[:, None, None]) / np.maximum(step, 1e-12)[:, None, None]
        tensors = {
            "levels": np.rint(shares).clip(0, _LEVELS).astype(np.uint8),
            "range": np.stack([low, step], axis=1).astype(np.float32),
            "size": np.array(self.size, np.int32),
            "model": np.frombuffer(bytes.fromhex(self.model_hash), np.uint8),
        }
        kinds = dict(zip(tensors, ("U8", "F32", "I32", "U8"), strict=True))
        try:
            write_tensors(
                target,
                {name: (kinds[name], tensor.shape) for name, tensor in tensors.items()},
                tensors.items(),
            )
        except OSError as error:
            raise OutputError(f"{target} cannot be written: {error.strerror}.") from None
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Latents:
        """Read what `save` wrote, from whomever.

        Raises:
            ConfigError: it is no such file, or too large.
        """
        try:
            tensors = map_tensors(Path(path))
        except BundleError as error:
            raise ConfigError(f"latents: {error}") from None
        kinds = {name: (t.dtype.str, t.ndim) for name, t in tensors.items()}
        if kinds != {
            "levels": ("|u1", 3), "range": ("<f4", 2), "size": ("<i4", 1), "model": ("|u1", 1),
        }:  # fmt: skip
            raise ConfigError(f"latents: {path} holds other tensors than those of a picture.")
        levels, ranges, size = tensors["levels"], tensors["range"], tensors["size"].tolist()
        fits = ranges.shape == (len(levels), 2) and len(size) == 2 and len(tensors["model"]) <= 32
        if not (fits and 0 < levels.size <= _MAX_VALUES and np.isfinite(ranges).all()):
            raise ConfigError(f"latents: {path} is damaged: its sizes do not fit together.")
        if not all(
            0 < side <= 64 * cells for side, cells in zip(size, levels.shape[:0:-1], strict=True)
        ):
            raise ConfigError(
                f"latents: {path} is of {size[0]}x{size[1]} pixels, which do not fit."
            )
        low, step = (ranges[:, i, None, None] for i in (0, 1))
        with np.errstate(over="ignore", invalid="ignore"):  # of any two finite numbers
            values = low + step * levels.astype(np.float32)
        if not np.isfinite(values).all():
            raise ConfigError(f"latents: {path} is damaged: its range is beyond fp32.")
        return cls(values, (size[0], size[1]), tensors["model"].tobytes().hex())
