"""Cache of packed weights: kept by what they were made from, and mapped from there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from numpy.typing import NDArray

from sdengine.backends.forks import ForkSafeLock
from sdengine.backends.native.packing import Packing, pack, packed_bytes, packed_kinds
from sdengine.errors import BundleError
from sdengine.storage.cache_files import CacheFiles
from sdengine.storage.tensor_file import map_tensors, write_tensors

_log = logging.getLogger(__name__)
_LAYOUT = 1  # to be raised when the same packing would give other bytes
_ENDING = ".weights"
KEPT = CacheFiles("packed", f"*{_ENDING}")
Array = NDArray[Any]


class PackedWeights:
    """Packed tensors by name; networks of all sizes that read the same ones share them."""

    def __init__(self, tensors: dict[str, Array]) -> None:
        self.tensors = tensors


_open: WeakValueDictionary[str, PackedWeights] = WeakValueDictionary()
_opening = ForkSafeLock()


def packed_weights(
    network: str, origin: str, packing: Packing, weights: Mapping[str, Array]
) -> PackedWeights:
    """Return the packed weights of a network: those in use, or the file's, or made now.

    Where the cache cannot be written they are kept in memory.

    Args:
        network: its name.
        origin: what the weights' content follows from, such as their file's hash.
        packing: what they become.
        weights: the bundle's tensors.
    """
    text = json.dumps([_LAYOUT, network, origin, [astuple(packed) for packed in packing]])
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    with _opening:
        found = _open.get(key)
        if found is None:
            found = PackedWeights(_from_file(KEPT.folder / f"{network}-{key}{_ENDING}", packing,
                                             weights))  # fmt: skip
            _open[key] = found
    return found


def _from_file(path: Path, packing: Packing, weights: Mapping[str, Array]) -> dict[str, Array]:
    kinds = packed_kinds(packing)
    with contextlib.suppress(BundleError, OSError):
        found = map_tensors(path)
        if {name: tensor.shape for name, tensor in found.items()} == {
            name: shape for name, (_, shape) in kinds.items()
        }:
            os.utime(path)
            return found
    _log.info("packing %.0f MB of weights into %s", packed_bytes(packing) / 1e6, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(path, kinds, pack(packing, weights))
        return map_tensors(path)
    except (OSError, BundleError) as error:
        _log.info("%s cannot be kept: %s; its weights are packed at every load", path, error)
        return dict(pack(packing, weights))
