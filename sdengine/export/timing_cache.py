"""Keep what full TensorRT measured while it built, so that later builds need not measure it again.

The format is that of `sdengine.backends.tensorrt_files`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from sdengine.backends import tensorrt_files
from sdengine.backends.tensorrt_files import Key, Kind, Loaded
from sdengine.cache_dir import cache_dir

KIND = Kind("timing cache", b"sdengine timing cache 1\n", "timing")


def kept_path(key: Key) -> Path:
    """Return where measurements are kept unless a path is given."""
    return tensorrt_files.kept_path(KIND, key)


def load(path: Path, key: Key) -> Loaded:
    """Read measurements that hold for a key."""
    return tensorrt_files.load(path, KIND, key)


def save(path: Path, key: Key, content: bytes) -> None:
    """Write measurements, the whole file or nothing of it.

    Raises:
        OSError: the place cannot be written.
    """
    tensorrt_files.save(path, KIND, key, content)


def kept_files() -> list[Path]:
    """Return the files that are kept, the ones written last first."""
    written = {}
    for path in cache_dir("tensorrt").glob("timing-*.cache"):
        with contextlib.suppress(OSError):
            written[path] = path.stat().st_mtime
    return sorted(written, key=lambda path: -written[path])


def clear() -> int:
    """Remove what is kept and return how many bytes that freed."""
    freed = 0
    for path in kept_files():
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed
