"""Keep what full TensorRT measured while it built, so that later builds need not measure it again.

The format is that of `sdengine.backends.tensorrt.kept_content`.
"""

from __future__ import annotations

from pathlib import Path

from sdengine.backends.tensorrt import kept_content
from sdengine.backends.tensorrt.kept_content import Key, Kind, Loaded
from sdengine.storage.cache_files import CacheFiles

KIND = Kind("timing cache", b"sdengine timing cache 1\n", "timing")
KEPT = CacheFiles("tensorrt", f"{KIND.prefix}-*.cache")


def kept_path(key: Key) -> Path:
    """Return where measurements are kept unless a path is given."""
    return kept_content.kept_path(KIND, key)


def load(path: Path, key: Key) -> Loaded:
    """Read measurements that hold for a key."""
    return kept_content.load(path, KIND, key)


def save(path: Path, key: Key, content: bytes) -> None:
    """Write measurements, the whole file or nothing of it.

    Raises:
        OSError: the place cannot be written.
    """
    kept_content.save(path, KIND, key, content)
