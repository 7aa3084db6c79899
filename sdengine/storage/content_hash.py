"""Content hashes: of a file's bytes, remembered for as long as the file is the same version.

What names a file (a manifest, a path) proves nothing about its bytes. Hashing gigabytes at every
load would take seconds, so what was found out about a file is kept with the version that it was
found of, and found out again where any of that differs. It is kept in the user's cache, and in
memory where that cannot be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import BinaryIO

from sdengine.errors import BundleError
from sdengine.storage.cache_place import cache_dir
from sdengine.storage.regular_file import open_regular
from sdengine.storage.whole_file import whole_file

_PURPOSE = "versions"
_ENDING = ".json"
_MAX_REMEMBERED = 1000
_MAX_BYTES = 4096
_SHA256 = "sha256 "
# Two changes within one tick of the file system's clock give the same times: only what was read
# a tick after the last change is known to be of this version.
_TICK_NS = 20_000_000
_COARSE_TICK_NS = 2_000_000_000  # of systems that keep whole seconds
_in_memory: dict[FileVersion, str] = {}


@dataclass(frozen=True)
class FileVersion:
    """Tell one state of a file from every other. No program can set the time of change back."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileVersion:
        """Return the version that a file had when it was looked at."""
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    @property
    def record(self) -> Path:
        """Return where it is kept what is known of the file.

        Raises:
            OSError: there is no place.
        """
        return cache_dir(_PURPOSE) / f"{self.device:x}-{self.inode:x}{_ENDING}"

    def is_settled(self) -> bool:
        """Say whether any later change will show; wait for it where that takes no time."""
        coarse = self.changed_ns % 1_000_000_000 == 0
        age_ns = time.time_ns() - self.changed_ns
        if 0 <= age_ns < _TICK_NS and not coarse:
            time.sleep((_TICK_NS - age_ns) / 1e9)
            return True
        return age_ns > (_COARSE_TICK_NS if coarse else _TICK_NS)


@dataclass(frozen=True)
class HashedFile:
    """A file whose bytes were hashed.

    Args:
        path: of the file.
        sha256: of its bytes.
        version: that the bytes were of.
    """

    path: Path
    sha256: str
    version: FileVersion

    def is_unchanged(self) -> bool:
        """Say whether the path still leads to that version."""
        with contextlib.suppress(OSError):
            return FileVersion.of(self.path.stat()) == self.version
        return False

    def is_overwritten(self) -> bool:
        """Say whether who has the file mapped sees other bytes now.

        Another file in its place, or none, leaves what is mapped as it was.
        """
        try:
            now = FileVersion.of(self.path.stat())
            is_same_file = (now.device, now.inode) == (self.version.device, self.version.inode)
            return is_same_file and now != self.version and sha256_of(self.path) != self.sha256
        except (OSError, BundleError):
            return False


def sha256_of(path: Path) -> str:
    """Hash a file in pieces; memory stays small whatever its size.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            return _sha256(file)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None


def hash_open_file(file: BinaryIO, path: Path) -> HashedFile:
    """Return the hash of an open file, which is read only where its version is not known.

    Args:
        file: open, at any place.
        path: of it.

    Raises:
        BundleError: it cannot be read, or is changed meanwhile.
    """
    version = FileVersion.of(os.fstat(file.fileno()))
    found = recall(version)
    if found.startswith(_SHA256):
        return HashedFile(path, found.removeprefix(_SHA256), version)
    settled = version.is_settled()
    try:
        file.seek(0)
        sha256 = _sha256(file)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}.") from None
    if FileVersion.of(os.fstat(file.fileno())) != version:
        raise BundleError(f"{path} was changed while it was read. Try again once it is written.")
    if settled:
        remember(version, _SHA256 + sha256)
    return HashedFile(path, sha256, version)


def recall(version: FileVersion) -> str:
    """Return what is known of a file's version; nothing where none is."""
    known = _in_memory.get(version, "")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        with open_regular(version.record) as file:
            told = json.loads(file.read(_MAX_BYTES))
        if tuple(told["version"]) == astuple(version) and isinstance(told["known"], str):
            known = known or told["known"]
            os.utime(version.record)  # the time of the last use
    return known


def remember(version: FileVersion, known: str) -> None:
    """Keep what is known of a file's version."""
    _in_memory[version] = known
    content = json.dumps({"version": astuple(version), "known": known})
    with contextlib.suppress(OSError):
        folder = version.record.parent
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(version.record) as file:
            file.write(content.encode())
        _forget_oldest(folder)


def last_use(status: os.stat_result) -> float:
    """Return when a file was written or its version last recalled, in seconds since 1970."""
    with contextlib.suppress(OSError):
        return max(status.st_mtime, FileVersion.of(status).record.stat().st_mtime)
    return status.st_mtime


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _forget_oldest(folder: Path) -> None:
    records = [path for path in folder.iterdir() if path.name.endswith(_ENDING)]
    for path in sorted(records, key=lambda path: path.stat().st_mtime)[:-_MAX_REMEMBERED]:
        path.unlink()
