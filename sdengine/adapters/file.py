"""Adapter files: opened as data, in the formats and folders that trainers write."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine.adapters.peft_config import PeftConfig, configs_of_metadata, read_config
from sdengine.errors import BundleError, CheckpointError
from sdengine.inputs.loras import find_lora, unreadable
from sdengine.storage.content_hash import HashedFile, hash_open_file
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import OF_WEIGHTS, map_open_file, read_metadata
from sdengine.storage.torch_archive import TorchArchive

Array = NDArray[Any]


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
    found = find_lora(path)
    configs: dict[str, PeftConfig] = {}
    try:
        if found.config:
            configs[""] = read_config(found.config)
        tensors, metadata, holder = _read(found.holder.path)
        if holder.sha256 != found.holder.sha256:
            raise ValueError("it was changed while it was read. Try again once it is written")
        configs |= configs_of_metadata(metadata)
    except (OSError, BundleError, CheckpointError, ValueError) as error:
        raise unreadable(path, error) from None
    return AdapterFile(holder, found.name, found.sha256, tensors, metadata, configs)


def alias_of(path: Path) -> str:
    """Return the name that a file's trainer gave it; "" where it says none or cannot be read."""
    if path.suffix.lower() not in (".safetensors", ".sft"):
        return ""
    try:
        with open_regular(path) as file:
            told = read_metadata(file, path)
    except (OSError, BundleError):
        return ""
    return alias_in(told)


def alias_in(metadata: Mapping[str, str]) -> str:
    """Return the name that a trainer wrote into the metadata of a file, or ""."""
    return metadata.get("ss_output_name", "")[:200].encode("utf-8", "replace").decode()


def _read(path: Path) -> tuple[Mapping[str, Array], Mapping[str, str], HashedFile]:
    with open_regular(path) as file:
        holder = hash_open_file(file, path)
        if path.suffix.lower() in (".safetensors", ".sft"):
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
