"""IP-Adapter files: a projection of what an image encoder saw, and keys and values of it for each
cross-attention of a U-Net.

Source: the layout of the published files: `image_proj.*`, and `ip_adapter.N.to_k_ip.weight` with N
odd, because a block's self-attention, which the adapter leaves alone, is counted too.
"""

from __future__ import annotations

import os
import re
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import AdapterError, BundleError, CheckpointError, ConfigError
from sdengine.inputs.image_projections import Projection, UnfittingError, read_projection
from sdengine.inputs.recorded import Recorded
from sdengine.storage.content_hash import FileVersion, HashedFile, hash_open_file
from sdengine.storage.pickle_reader import TensorRecord
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import map_open_file, to_float32
from sdengine.storage.torch_archive import TorchFile

Array = NDArray[Any]
Floats = NDArray[np.float32]
ACCEPTED = "the path of an IP-Adapter's file"
SAFETENSORS_ENDINGS = (".safetensors", ".sft")
ENDINGS = (*SAFETENSORS_ENDINGS, ".bin", ".pt", ".pth", ".ckpt")
_PARTS = ("image_proj", "ip_adapter")
_LAYER = re.compile(r"([0-9]{1,5})\.to_([kv])_ip\.weight")
_OF_LORA = re.compile(r"[0-9]{1,5}\.to_(q|k|v|out)_lora\.(up|down)\.weight")
_DTYPES = ("F64", "F32", "F16", "BF16")
_MAX_ENTRIES = 10_000


class IPAdapterFile(Recorded):
    """A file whose every number was looked at; its tensors stay mapped.

    Args:
        holder: the file.
        projection: of what an image encoder saw, to tokens.
        layers: the matrices [channels, width of a token] of keys and of values, of each
            cross-attention in the order of diffusers' attention processors.
    """

    def __init__(
        self, holder: HashedFile, projection: Projection, layers: Sequence[tuple[Array, Array]]
    ) -> None:
        super().__init__(holder.sha256, holder.path.name)
        self.projection = projection
        self._holder = holder
        self._layers = tuple(layers)

    @property
    def channels(self) -> tuple[int, ...]:
        """Of the keys of each cross-attention."""
        return tuple(keys.shape[0] for keys, _ in self._layers)

    def keys_and_values(self, layer: int, tokens: Floats) -> tuple[Floats, Floats]:
        """Return keys and values [rows, tokens, channels] of tokens [rows, tokens, width]."""
        keys, values = (tokens @ to_float32(matrix).T for matrix in self._layers[layer])
        return keys, values

    def require_unchanged(self) -> None:
        """Refuse a file whose bytes are not those that were checked.

        Raises:
            AdapterError: it was overwritten.
        """
        if self._holder.is_overwritten():
            raise AdapterError(
                f"IP-Adapter {str(self._holder.path)!r} was overwritten after it was checked. Make "
                "the request again."
            )


# Those that somebody holds, and the last ones, so that a file is looked at once.
_opened: weakref.WeakValueDictionary[FileVersion, IPAdapterFile] = weakref.WeakValueDictionary()
_last: deque[IPAdapterFile] = deque(maxlen=4)


def read_ip_adapter(field: str, value: Any) -> Recorded:
    """Return an IP-Adapter, whatever it was given as; nothing of a file is run.

    Args:
        field: what errors call it.
        value: an IPAdapterFile, its record, or a path.

    Raises:
        ConfigError: it is none of these.
        AdapterError: the file is missing, damaged, no IP-Adapter, of a kind that is not applied, or
            holds NaN; the message names the tensor with its shape.
    """
    if isinstance(value, IPAdapterFile) or type(value) is Recorded:
        return value
    if not isinstance(value, (str, os.PathLike)):
        raise ConfigError.for_field(field, value, ACCEPTED)
    path = Path(value)
    shown = f"IP-Adapter {str(path)[:200]!r}"
    try:
        with open_regular(path) as file:
            version = FileVersion.of(os.fstat(file.fileno()))
            if (known := _opened.get(version)) is not None:
                return known
            if path.suffix.lower() not in ENDINGS:
                raise AdapterError(f"{shown} does not end as one of {', '.join(ENDINGS)}.")
            holder = hash_open_file(file, path)
            is_plain = path.suffix.lower() in SAFETENSORS_ENDINGS
            named = map_open_file(file, path)[0] if is_plain else None
        tensors = _in_pickle(path) if named is None else named
        found = IPAdapterFile(holder, *_parts(tensors))
    except UnfittingError as error:
        raise AdapterError(f"{shown}: {error}") from None
    except (BundleError, CheckpointError) as error:
        raise AdapterError(f"{shown}: {str(error).rstrip('.')}.") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise AdapterError.of_reading(f"{shown} cannot be read: {reason}.", error) from None
    _opened[version] = found
    _last.append(found)
    return found


def _in_pickle(path: Path) -> dict[str, Array]:
    """Return the tensors by name, of a dict of both parts or of one that has their names whole."""
    file = TorchFile(path)
    content = file.content if isinstance(file.content, dict) else {}
    records: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            records |= {f"{key}.{name}": one for name, one in value.items()}
        else:
            records[str(key)] = value
        if len(records) > _MAX_ENTRIES:
            raise CheckpointError(f"it has more than {_MAX_ENTRIES} entries")
    found = {}
    for name, record in records.items():
        if isinstance(record, TensorRecord):
            if record.storage.dtype not in _DTYPES:
                raise UnfittingError(f"{name[:120]} is {record.storage.dtype}; expected floats.")
            found[name] = file.array_of(name, record)
    return found


def _parts(tensors: Mapping[str, Array]) -> tuple[Projection, list[tuple[Array, Array]]]:
    """Return both parts of a file, all numbers of which are finite."""
    by_part: dict[str, dict[str, Array]] = {part: {} for part in _PARTS}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if part in by_part:
            by_part[part][rest] = tensor
    if not all(by_part.values()):
        raise UnfittingError(
            "it is no IP-Adapter; expected tensors image_proj.* and ip_adapter.*. LoRAs and the "
            "like are given as loras, networks that read a control picture as controls."
        )
    if unknown := sorted(name for name in tensors if name.partition(".")[0] not in by_part):
        raise UnfittingError(f"{unknown[0][:120]} is unknown to an IP-Adapter.")
    projection = read_projection(by_part["image_proj"])
    layers = _layers(by_part["ip_adapter"], projection.out_width)
    for name, tensor in tensors.items():
        if tensor.dtype.kind not in "fu":  # bf16 is given as its bits
            raise UnfittingError(f"{name} is {tensor.dtype}; expected floats.")
        with np.errstate(over="ignore"):
            is_finite = bool(np.isfinite(to_float32(tensor)).all())
        if not is_finite:
            raise UnfittingError(f"{name} {list(tensor.shape)} holds NaN or infinity.")
    return projection, layers


def _layers(tensors: Mapping[str, Array], width: int) -> list[tuple[Array, Array]]:
    found: dict[int, dict[str, Array]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            why = "is unknown to an IP-Adapter"
            if _OF_LORA.fullmatch(name):
                why = (
                    "is of a LoRA that FaceID adapters want in the U-Net beside them, which is not "
                    "applied. FaceID adapters without one, such as Portrait, are"
                )
            raise UnfittingError(f"ip_adapter.{name[:120]} {why}.")
        found.setdefault(int(match[1]), {})[match[2]] = tensor
    numbers = sorted(found)
    if numbers != [2 * index + 1 for index in range(len(numbers))]:
        raise UnfittingError(
            f"its layers are numbered {str(numbers)[:80]}; expected 1, 3, 5 and so on."
        )
    layers = []
    for number in numbers:
        pair = found[number]
        if missing := {"k", "v"} - pair.keys():
            raise UnfittingError(f"ip_adapter.{number}.to_{min(missing)}_ip.weight is missing.")
        for kind, tensor in pair.items():
            shape = list(tensor.shape)
            if len(shape) != 2 or shape[1] != width or tensor.shape != pair["k"].shape:
                raise UnfittingError(
                    f"ip_adapter.{number}.to_{kind}_ip.weight is {shape}; expected rows of {width} "
                    "numbers, the width of image_proj's tokens, as many for keys as for values."
                )
        layers.append((pair["k"], pair["v"]))
    return layers
