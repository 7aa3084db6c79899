"""Temporary files and folders: beside the place that they will take, and gone after any end.

Each is called .NAME.XXXXXXXX.sdengine and is locked by its writer. What a writer left that was
killed has the name without the lock, so the next run knows it and removes it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sdengine.storage.file_lock import Holders, asking, hold

_NAME = re.compile(r"\..+\.[0-9a-f]{8}\.sdengine")
_MAX_NAME_BYTES = 200  # so that the whole name has fewer than the 255 of most file systems
_MAX_LOOKED_AT = 10_000  # a folder of a million pictures must not slow the writing of one
_DAY_SECONDS = 86_400.0


@contextmanager
def temporary_file(place: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """Give a new file beside a place: its path, and itself to be written.

    Whoever may read other new files of the user may read it.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = _beside(place)
        file = path.open("xb")
        hold(file.fileno(), alone=True)
        if _is_still(path, file.fileno()):
            break
        file.close()  # it was taken for an abandoned one before it was locked
    try:
        with file:
            yield path, file
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """Give a new folder beside a place.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        path = _beside(place)
        path.mkdir()
        descriptor = _held_folder(path)
        if descriptor is None or _is_still(path, descriptor):
            break
        os.close(descriptor)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        if descriptor is not None:
            os.close(descriptor)


def abandoned(folder: Path) -> Iterator[Path]:
    """Give the temporaries in a folder whose writers are gone.

    Of a large folder only a part is looked at.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in itertools.islice(entries, _MAX_LOOKED_AT):
            path = Path(entry.path)
            if _NAME.fullmatch(entry.name) and is_abandoned(path):
                yield path


def is_abandoned(path: Path) -> bool:
    """Say whether a temporary's writer is gone; without locks, whether it is a day old."""
    try:
        status = path.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return False
        with asking(path) as holders:
            if holders is Holders.UNKNOWN:
                return time.time() - status.st_mtime > _DAY_SECONDS
            return holders is Holders.NOBODY
    except OSError:
        return False


def remove_abandoned(folder: Path) -> int:
    """Remove the temporaries in a folder whose writers are gone; return how many bytes they had."""
    freed = 0
    for path in abandoned(folder):
        freed += size_of(path)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                path.unlink()
    return freed


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files in a folder."""
    total = 0
    for file in [path] if not path.is_dir() else path.rglob("*"):
        with contextlib.suppress(OSError):
            status = file.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def _beside(place: Path) -> Path:
    name = os.fsdecode(os.fsencode(place.name)[:_MAX_NAME_BYTES])
    return place.with_name(f".{name}.{secrets.token_hex(4)}.sdengine")


def _held_folder(path: Path) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return None
    hold(descriptor, alone=True)
    return descriptor


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        found, opened = path.lstat(), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (opened.st_dev, opened.st_ino)
