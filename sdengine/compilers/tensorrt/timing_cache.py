"""Timing cache: what full TensorRT measured while it built, so that later builds need not again.

The format is that of `sdengine.backends.cache_file`.
"""

from __future__ import annotations

from pathlib import Path

from sdengine.backends import cache_file
from sdengine.backends.cache_file import Key, Kind, Loaded
from sdengine.storage.cache_files import CacheFiles

KIND = Kind("timing cache", b"sdengine timing cache 1\n", "timing")
KEPT = CacheFiles("tensorrt", f"{KIND.prefix}-*.cache")


def cache_path(key: Key) -> Path:
    """Return where measurements are kept unless a path is given."""
    return cache_file.cache_path(KIND, key)


def load(path: Path, key: Key) -> Loaded:
    """Read measurements that hold for a key."""
    return cache_file.load(path, KIND, key)


def save(path: Path, key: Key, content: bytes) -> None:
    """Write measurements, the whole file or nothing of it.

    Raises:
        OSError: the place cannot be written.
    """
    cache_file.save(path, KIND, key, content)
