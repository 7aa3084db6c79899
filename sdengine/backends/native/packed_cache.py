"""Cache of packed weights: kept by the bytes that they were made from, and mapped from there.

What a manifest says of those bytes plays no part: a bundle may claim the hash of another.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from types import MappingProxyType
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.adapters.changes import Strong
from sdengine.adapters.weight_set import WeightSet
from sdengine.backends.forks import ForkSafeLock
from sdengine.backends.native.packing import Packing, pack, packed_bytes, packed_kinds, sources_of
from sdengine.errors import BundleError
from sdengine.storage.cache_files import CacheFiles
from sdengine.storage.cache_place import LIMIT_VARIABLE, say_not_kept
from sdengine.storage.checked_tensors import map_checked, write_checked
from sdengine.storage.content_hash import HashedFile
from sdengine.storage.tensor_file import Kinds

_log = logging.getLogger(__name__)
_LAYOUT = 2  # to be raised when the same packing would give other bytes
_ENDING = ".weights"
_LINE = 64  # bytes, of a cache
KEPT = CacheFiles("packed", f"*{_ENDING}")
Array = NDArray[Any]


class PackedWeights:
    """Packed tensors by name; networks of all sizes that read the same ones share them.

    Args:
        tensors: all that a network reads.
        own_bytes: of those that are merged, in memory of their own; the others are the bundle's.
        base: whose the others are, kept with them so that the next that are merged share them too.
    """

    def __init__(
        self,
        tensors: dict[str, Array],
        own_bytes: int = 0,
        base: PackedWeights | None = None,
    ) -> None:
        self.tensors = tensors
        self.own_bytes = own_bytes
        self.base = base

    def own(self) -> dict[str, Array]:
        """Return the tensors that are not the base's."""
        shared = {} if self.base is None else self.base.tensors
        return {name: x for name, x in self.tensors.items() if shared.get(name) is not x}


# By key, and the memory that they were copied to.
_open: WeakValueDictionary[tuple[str, str], PackedWeights] = WeakValueDictionary()
_opening = ForkSafeLock()


def packed_weights(
    network: str,
    source: HashedFile,
    packing: Packing,
    weights: Mapping[str, Array],
    memory: str = "",
) -> PackedWeights:
    """Return the packed weights of a network: those in use, or the file's, or made now.

    Where the cache cannot be written they are kept in memory.

    Args:
        network: its name.
        source: the weights' file, by whose bytes the packed ones are found again.
        packing: what they become.
        weights: the file's tensors.
        memory: names the calling thread's own, where they are copied to; empty leaves them where
            they are. (A mapped file lies in the memory of whoever read it first.)

    Raises:
        BundleError: the file was changed after it was hashed.
    """
    key = _key(network, source, packing, "")
    with _opening:
        found = _open.get((key, memory))
        if found is None:
            other = _elsewhere(key) if memory else None
            if other is None:
                other = PackedWeights(_kept_or_made(network, key, source, packing, weights))
            found = PackedWeights(_copied(other.tensors)) if memory else other
            _open[key, memory] = found
    return found


def merged_weights(
    network: str,
    base_packing: Packing,
    base: PackedWeights,
    source: HashedFile,
    packing: Packing,
    weights: Mapping[str, Array],
    adapters: WeightSet,
    make_room: Callable[[int], None],
    memory: str = "",
) -> PackedWeights:
    """Return the packed weights of a network with changes: those in use, or made now.

    Only what is changed is laid out again, from the bundle's own values; the rest is shared with
    the bundle's. They are in memory alone: there would be a file for each strength that is tried.

    Args:
        network: its name.
        base_packing, base: what the bundle's own weights become, and these.
        source, packing: as for `packed_weights`.
        weights: the file's tensors, and those that come with hypernetworks.
        adapters: what is merged.
        make_room: called with the bytes that they will take, before they are made.
        memory: as for `packed_weights`; the base lies there.

    Raises:
        BundleError, AdapterError, CheckpointError: a file was changed after it was hashed, or a
            sum is not finite. Nothing that is in use is altered.
    """
    key = _key(network, source, packing, adapters.identity(network))
    with _opening:
        found = _open.get((key, memory))
        if found is None:
            names, shared = {*adapters.changed(network)}, {*base_packing}
            changed = tuple(
                p for p in packing if p not in shared or not names.isdisjoint(sources_of(p))
            )
            make_room(packed_bytes(changed))
            other = _elsewhere(key) if memory else None
            if other is not None:
                made = _copied(other.own())
            else:
                adapters.require_unchanged()  # reading a mapped file that was cut off is fatal
                pristine, changes = adapters.pristine(network, weights), adapters.changes(network)
                made = dict(_pack_unchanged(source, changed, pristine, changes, together=True))
                adapters.require_unchanged()
            own_bytes = sum(array.nbytes for array in made.values())
            found = PackedWeights({**base.tensors, **made}, own_bytes, base)
            _open[key, memory] = found
    return found


def _elsewhere(key: str) -> PackedWeights | None:
    """Return weights that are in use, in whatever memory."""
    return next((one for (other, _), one in _open.items() if other == key), None)


def _copied(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return copies side by side in memory that the calling thread is the first to touch."""
    ends = [0]
    for tensor in tensors.values():
        ends.append(ends[-1] + -(-tensor.nbytes // _LINE) * _LINE)
    memory = _native.own_pages(ends[-1])
    copies = {}
    for (name, tensor), start in zip(tensors.items(), ends, strict=False):
        place = memory[start : start + tensor.nbytes].view(tensor.dtype).reshape(tensor.shape)
        np.copyto(place, tensor)
        copies[name] = place
    return copies


def _key(network: str, source: HashedFile, packing: Packing, identity: str) -> str:
    made_from = [source.sha256, identity] if identity else source.sha256
    text = json.dumps([_LAYOUT, network, made_from, [astuple(packed) for packed in packing]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _kept_or_made(
    network: str, key: str, source: HashedFile, packing: Packing, weights: Mapping[str, Array]
) -> dict[str, Array]:
    kinds = packed_kinds(packing)
    try:
        path = KEPT.folder / f"{network}-{key}{_ENDING}"
        found = _kept(path, kinds, key)
        if found is not None:
            return found
        size_bytes = packed_bytes(packing)
        if not KEPT.make_room(size_bytes):
            raise OSError(errno.ENOSPC, f"they exceed {LIMIT_VARIABLE} or what the disk has free")
        _log.info("packing %.0f MB of weights into %s", size_bytes / 1e6, path)
        write_checked(path, kinds, _pack_unchanged(source, packing, weights), key)
        return map_checked(path, kinds, key)
    except (OSError, BundleError) as error:
        say_not_kept("packed weights", getattr(error, "strerror", None) or str(error).rstrip("."))
        return dict(pack(packing, weights, together=True))


def _kept(path: Path, kinds: Kinds, key: str) -> dict[str, Array] | None:
    try:
        return map_checked(path, kinds, key)
    except FileNotFoundError:
        return None
    except BundleError as error:
        _log.warning("%s It is not used, and made again.", error)
        return None


def _pack_unchanged(
    source: HashedFile,
    packing: Packing,
    weights: Mapping[str, Array],
    changes: Mapping[str, Sequence[Strong]] = MappingProxyType({}),
    *,
    together: bool = False,
) -> Iterator[tuple[str, Array]]:
    _require_unchanged(source)
    yield from pack(packing, weights, changes, together=together)
    _require_unchanged(source)


def _require_unchanged(source: HashedFile) -> None:
    if not source.is_unchanged():
        raise BundleError(f"{source.path} was changed while its weights were packed.")
