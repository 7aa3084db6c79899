"""Checked tensor files: with a checksum of every tensor, so that damage is found before it is used.

All of a file is read and checked the first time that a version of it is mapped; from then on its
header is, and that it is still that version. A mapped file is locked as one in use.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sdengine.errors import BundleError
from sdengine.machine import usable_processors
from sdengine.storage.content_hash import FileVersion, recall, remember
from sdengine.storage.file_lock import hold
from sdengine.storage.regular_file import open_regular
from sdengine.storage.tensor_file import (
    Array,
    Kinds,
    map_open_tensors,
    tensor_header,
    write_tensors,
)

_CHECKSUMS = "checksums"
_SOUND = "sound "


def write_checked(
    path: Path, kinds: Kinds, tensors: Iterable[tuple[str, Array]], identity: str
) -> None:
    """Write a file, whole or not at all.

    Args:
        path, kinds, tensors: as for `write_tensors`.
        identity: what the tensors are; only who asks for that gets them.

    Raises:
        OSError: it cannot be written.
    """
    checksums = dict.fromkeys(kinds, 0)

    def with_checksums() -> Iterator[tuple[str, Array]]:
        for name, tensor in tensors:
            checksums[name] = _checksum(tensor)
            yield name, tensor
        yield _CHECKSUMS, np.array([*checksums.values()], np.uint32).view(np.int32)

    write_tensors(path, _with_checksums(kinds), with_checksums(), _metadata(identity))


def map_checked(path: Path, kinds: Kinds, identity: str) -> dict[str, Array]:
    """Map a file's tensors, read-only, by name.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be opened.
        BundleError: it is damaged or holds something else.
    """
    header, _ = tensor_header(_with_checksums(kinds), _metadata(identity))
    with open_regular(path) as file:
        hold(file.fileno())
        if file.read(len(header)) != header:
            raise BundleError(f"{path}: the header is not that of these tensors.")
        tensors = map_open_tensors(file, path)
        checksums = tensors.pop(_CHECKSUMS).view(np.uint32).tolist()
        version = FileVersion.of(os.fstat(file.fileno()))
        sound = _SOUND + identity
        if recall(version) != sound:
            settled = version.is_settled()
            _check(path, tensors, checksums)
            if settled and FileVersion.of(os.fstat(file.fileno())) == version:
                remember(version, sound)
    return tensors


def read_through(path: Path) -> None:
    """Read all of a file, though its version was found sound before: disks forget silently.

    Raises:
        OSError: it cannot be read.
        BundleError: it is damaged.
    """
    with open_regular(path) as file:
        hold(file.fileno())
        tensors = map_open_tensors(file, path)
        checksums = tensors.pop(_CHECKSUMS, np.empty(0, np.int32)).view(np.uint32).tolist()
        if len(checksums) != len(tensors):
            raise BundleError(f"{path}: it has {len(checksums)} checksums of {len(tensors)}.")
        _check(path, tensors, checksums)


def _check(path: Path, tensors: dict[str, Array], checksums: list[int]) -> None:
    with ThreadPoolExecutor(usable_processors().threads) as pool:
        found = pool.map(_checksum, tensors.values())
        for name, wanted, is_there in zip(tensors, checksums, found, strict=True):
            if wanted != is_there:
                raise BundleError(f"{path}: the bytes of tensor {name!r} are not those written.")


def _checksum(tensor: Array) -> int:
    return zlib.crc32(np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data)


def _with_checksums(kinds: Kinds) -> Kinds:
    return {**kinds, _CHECKSUMS: ("I32", (len(kinds),))}


def _metadata(identity: str) -> dict[str, str]:
    return {"identity": identity}
