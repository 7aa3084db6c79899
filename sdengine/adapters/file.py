"""Adapter files: opened as data, in the formats and folders that trainers write."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.adapters.peft_config import PeftConfig, configs_of_metadata, read_config
from sdengine.errors import AdapterError, BundleError, CheckpointError
from sdengine.storage.content_hash import HashedFile, hash_open_file
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import OF_WEIGHTS, map_open_file
from sdengine.storage.torch_archive import TorchArchive

Array = NDArray[Any]
ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".bin", ".ckpt")
CONFIG_FILE = "adapter_config.json"
# What PEFT and diffusers call the file of a folder.
_IN_FOLDERS = tuple(
    f"{stem}{ending}"
    for stem in ("adapter_model", "pytorch_lora_weights")
    for ending in (".safetensors", ".bin")
)
_MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterFile:
    """An adapter's tensors, mapped, and what its file says of itself.

    Args:
        holder: the file that holds the tensors, and its version.
        name: the file's, or the folder's where the file has a name that all have.
        sha256: of all that it consists of.
        tensors: by key; of bf16 its bits in uint16.
        metadata: of a safetensors file.
        configs: PEFT's settings by network; "" is that of a folder, for all.
    """

    holder: HashedFile
    name: str
    sha256: str
    tensors: Mapping[str, Array]
    metadata: Mapping[str, str]
    configs: Mapping[str, PeftConfig]


def open_adapter(path: Path) -> AdapterFile:
    """Open a file, or a folder as PEFT or diffusers writes it; nothing of it is run.

    Raises:
        AdapterError: it is missing, damaged, or of an unknown format.
    """
    configs: dict[str, PeftConfig] = {}
    file, name, told = path, path.stem, b""
    try:
        if path.is_dir():
            file, name = _file_in(path), path.name
            if (path / CONFIG_FILE).exists():
                told = _read_config_file(path / CONFIG_FILE)
                configs[""] = read_config(told)
        elif path.name in _IN_FOLDERS:
            name = path.absolute().parent.name
        tensors, metadata, holder = _read(file)
        configs |= configs_of_metadata(metadata)
    except (OSError, BundleError, CheckpointError, ValueError) as error:
        if reason := getattr(error, "strerror", None):
            raise AdapterError(f"adapter {str(path)!r} cannot be read: {reason}.") from None
        raise AdapterError(f"adapter {str(path)!r}: {str(error).rstrip('.')}.") from None
    sha256 = holder.sha256
    if told:
        sha256 = hashlib.sha256(sha256.encode() + told).hexdigest()
    return AdapterFile(holder, name, sha256, tensors, metadata, configs)


def _file_in(folder: Path) -> Path:
    found = next((folder / name for name in _IN_FOLDERS if (folder / name).exists()), None)
    if found is None:
        raise ValueError(f"the folder has none of {', '.join(_IN_FOLDERS)}")
    return found


def _read_config_file(path: Path) -> bytes:
    with open_regular(path) as file:
        content = file.read(_MAX_CONFIG_BYTES + 1)
    if len(content) > _MAX_CONFIG_BYTES:
        raise ValueError(f"{CONFIG_FILE} is larger than {_MAX_CONFIG_BYTES} bytes")
    return content


def _read(path: Path) -> tuple[Mapping[str, Array], Mapping[str, str], HashedFile]:
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(f"its ending {ending!r} is not among {', '.join(ENDINGS)}")
    with open_regular(path) as file:
        holder = hash_open_file(file, path)
        if ending in (".safetensors", ".sft"):
            return *map_open_file(file, path), holder
    archive = TorchArchive(path)
    for name in archive.names():
        if archive.dtype(name) not in OF_WEIGHTS:
            raise ValueError(f"tensor {name[:120]!r} is {archive.dtype(name)}")
    return {name: archive.array(name) for name in archive.names()}, {}, holder


def scalar(tensor: Array) -> float:
    """Return a tensor of one number.

    Raises:
        ValueError: it holds another count, or no finite number.
    """
    if tensor.size != 1:
        raise ValueError(f"is {list(tensor.shape)}, not one number")
    bits = tensor.dtype == np.uint16
    value = (tensor.astype(np.uint32) << 16).view(np.float32) if bits else tensor
    number = float(value.reshape(-1)[0])
    if not np.isfinite(number):
        raise ValueError(f"is {number}")
    return number
