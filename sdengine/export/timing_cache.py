"""Keep what full TensorRT measured while it built, so that later builds need not measure it again.

A file is a line of text that names the format, a line of JSON that says whose measurements these
are, and the bytes that TensorRT gave. It is checked before TensorRT sees any of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from sdengine.cache_dir import cache_dir

_MAGIC = b"sdengine timing cache 1\n"
_MAX_BYTES = 1 << 28
_MAX_HEADER_BYTES = 4096


@dataclass(frozen=True)
class Key:
    """Name what measurements hold for.

    Args:
        tensorrt: version of TensorRT.
        gpu: name of the GPU.
        compute_capability: of the GPU, times ten.
    """

    tensorrt: str
    gpu: str
    compute_capability: int


@dataclass(frozen=True)
class Loaded:
    """What a file gave.

    Args:
        content: what TensorRT wrote; empty where nothing can be used.
        reason: why a file that is there is not used; empty where it is, or where there is none.
        replaceable: whether the file may be written over. A file of another kind may not.
    """

    content: bytes = b""
    reason: str = ""
    replaceable: bool = True


def kept_path(key: Key) -> Path:
    """Return where measurements are kept unless a path is given; see `cache_dir`."""
    gpu = re.sub(r"[^a-z0-9]+", "-", key.gpu.lower()).strip("-")[:60]
    version = re.sub(r"[^0-9A-Za-z.]+", "-", key.tensorrt)[:40]
    return cache_dir("tensorrt") / f"timing-{version}-{gpu}-sm{key.compute_capability}.cache"


def load(path: Path, key: Key) -> Loaded:
    """Read measurements that hold for a key."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return Loaded()
    except OSError as error:
        return Loaded(reason=f"it cannot be read: {error.strerror}", replaceable=False)
    if not data:
        return Loaded()
    if not data.startswith(_MAGIC):
        reason = "it is no timing cache of sdengine, and is left alone"
        return Loaded(reason=reason, replaceable=False)
    header, _, content = data[len(_MAGIC) :].partition(b"\n")
    try:
        described = json.loads(header[:_MAX_HEADER_BYTES])
        sha256 = described["sha256"]
        found = Key(
            str(described["tensorrt"])[:80],
            str(described["gpu"])[:80],
            int(described["compute_capability"]),
        )
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return Loaded(reason="it is damaged")
    if len(data) > _MAX_BYTES or hashlib.sha256(content).hexdigest() != sha256:
        return Loaded(reason="it is damaged")
    if found != key:
        return Loaded(reason=f"it holds for {_named(found)}, and this is {_named(key)}")
    return Loaded(content)


def save(path: Path, key: Key, content: bytes) -> None:
    """Write measurements, the whole file or nothing of it.

    Raises:
        OSError: the place cannot be written.
    """
    header = json.dumps({**asdict(key), "sha256": hashlib.sha256(content).hexdigest()})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(_MAGIC + header.encode() + b"\n" + content)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


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


def _named(key: Key) -> str:
    cc = key.compute_capability
    return f"TensorRT {key.tensorrt} on {key.gpu} ({cc // 10}.{cc % 10})"
