"""Image embeddings: what an image encoder, or a network for faces, made of pictures elsewhere."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import BundleError, CheckpointError, ConfigError
from sdengine.inputs.image_projections import Projection
from sdengine.inputs.picture import read_file
from sdengine.inputs.recorded import Recorded
from sdengine.storage.pickle_reader import TensorRecord
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import map_open_file, to_float32
from sdengine.storage.torch_archive import TorchFile

Floats = NDArray[np.float32]
PICKLE_ENDINGS = (".ipadpt", ".pt", ".pth", ".bin")
ENDINGS = (".npy", ".safetensors", ".sft", *PICKLE_ENDINGS)
ACCEPTED = f"an array of floats, or the path of a file of one tensor: {', '.join(ENDINGS)}"
_MAX_VALUES = 1 << 26
_MAX_RANK = 4
_MAX_PICTURES = 64
_FLOATS = ("F64", "F32", "F16", "BF16")


class ImageEmbeds(Recorded):
    """Numbers that do not change; what they mean depends on the adapter that reads them.

    Args:
        values: fp32, of 1 to 4 dimensions.
        sha256, name: as in `Recorded`.
    """

    def __init__(self, values: Floats, sha256: str, name: str = "") -> None:
        super().__init__(sha256, name)
        values.flags.writeable = False
        self.values = values

    def rows(self, field: str, projection: Projection) -> tuple[Floats, Floats | None]:
        """Return the embeddings of pictures, and those of the unconditional half if they are given.

        Args:
            field: what errors call them.
            projection: of the adapter.

        Returns:
            [pictures, width], or [pictures, states, width] where the adapter reads states.

        Raises:
            ConfigError: their shape is none that the adapter reads.
        """
        values, width = self.values, projection.in_width
        one = 2 if projection.reads == "states" else 1  # dimensions of one picture's
        if projection.reads == "given" and values.ndim == 4 and values.shape[2] == 1:
            values = values[:, :, 0]  # as diffusers keeps those of faces
        fits = values.ndim in (one, one + 1, one + 2) and values.shape[-1] == width
        if values.ndim == one + 2:
            fits &= values.shape[0] in (1, 2)
        if not fits or not 1 <= values[..., 0].size <= _MAX_VALUES // width:
            states = "states, " if one == 2 else ""
            raise ConfigError.for_field(
                field,
                f"numbers {list(self.values.shape)}",
                f"[{states}{width}], [pictures, {states}{width}], or as diffusers keeps them "
                f"[2, pictures, {states}{width}] with those of the unconditional half first",
            )
        negative = None
        if values.ndim == one + 2:
            negative = values[0] if len(values) == 2 else None
            values = values[-1]
        positive = values[None] if values.ndim == one else values
        if len(positive) > _MAX_PICTURES:
            accepted = f"at most {_MAX_PICTURES} pictures"
            raise ConfigError.for_field(field, f"{len(positive)} pictures", accepted)
        return positive, negative


def read_image_embeds(field: str, value: Any) -> Recorded:
    """Return image embeddings, whatever they were given as; nothing of a file is run.

    Raises:
        ConfigError: it is no array or file of one tensor, or holds NaN.
    """
    if isinstance(value, ImageEmbeds) or type(value) is Recorded:
        return value
    if isinstance(value, np.ndarray):
        values = _checked(field, value, "it", of_file=False)
        named = hashlib.sha256(f"{values.shape}".encode())
        named.update(values.tobytes())
        return ImageEmbeds(values, named.hexdigest())
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError.for_field(field, value, ACCEPTED)
    path = Path(value)
    shown = repr(str(path)[:200])
    content = read_file(field, path)
    try:
        values = _checked(field, _array(path, content), shown, of_file=True)
    except (BundleError, CheckpointError, OSError) as error:
        raise ConfigError(f"{field}: {str(error).rstrip('.')}.") from None
    except (ValueError, SyntaxError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{field}: {shown} is damaged: {str(error)[:120]}.") from None
    return ImageEmbeds(values, hashlib.sha256(content).hexdigest(), path.name)


def _array(path: Path, content: bytes) -> NDArray[Any]:
    """Return the one tensor of a file."""
    ending = path.suffix.lower()
    if ending == ".npy":
        return _of_numpy(content)
    if ending in PICKLE_ENDINGS:
        file = TorchFile(path)
        record = file.content
        if isinstance(record, dict):
            record = list(record.values())
        if isinstance(record, (list, tuple)):
            record = record[0] if len(record) == 1 else None
        if not isinstance(record, TensorRecord) or record.storage.dtype not in _FLOATS:
            raise ValueError("it does not hold one tensor of floats, alone or in a list")
        return file.array_of("the tensor", record)
    if ending not in ENDINGS:
        raise ValueError(f"its ending is not one of {', '.join(ENDINGS)}")
    with open_regular(path) as opened:
        tensors, _ = map_open_file(opened, path)
    if len(tensors) != 1:
        raise ValueError(f"it holds {len(tensors)} tensors, not one")
    return next(iter(tensors.values()))


def _of_numpy(content: bytes) -> NDArray[Any]:
    """Read NumPy's format; what the header claims is compared with what is there."""
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version} of NumPy's format")
    read = np.lib.format.read_array_header_1_0
    if version == (2, 0):
        read = np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(file)
    rest = content[file.tell() :]
    if dtype.kind != "f" or dtype.hasobject:
        raise ValueError(f"it holds {dtype}, not floats")
    values = np.frombuffer(rest, dtype)
    return values.reshape(shape, order="F" if is_fortran else "C")


def _checked(field: str, array: NDArray[Any], shown: str, *, of_file: bool) -> Floats:
    is_float = array.dtype.kind == "f" or (of_file and array.dtype == np.uint16)  # bits of bf16
    if not is_float or not 1 <= array.ndim <= _MAX_RANK or not 1 <= array.size <= _MAX_VALUES:
        raise ConfigError.for_field(
            field, f"an array {list(array.shape)} of {array.dtype}", "floats of 1 to 4 dimensions"
        )
    with np.errstate(over="ignore"):
        values = np.array(to_float32(array), np.float32, order="C")
    if not np.isfinite(values).all():
        raise ConfigError(f"{field}: {shown} holds NaN or infinity.")
    return values
