"""Cache files of GPUs: what a program worked out on one machine, for as long as it holds there.

A file is a line of text that names its kind, a line of JSON that says what its content holds for,
and the bytes that the program gave. It is checked before the program sees any of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sdengine import _native
from sdengine.storage.cache_place import cache_dir
from sdengine.storage.regular_file import open_regular
from sdengine.storage.whole_file import whole_file

MAX_BYTES = 1 << 28
_MAX_HEADER_BYTES = 4096
_DRIVER = Path("/sys/module/nvidia/version")


@dataclass(frozen=True)
class Kind:
    """What a file keeps.

    Args:
        name: for messages: "timing cache".
        magic: its first line.
        prefix: of its name among the kept files.
        purpose: of their folder; see `cache_dir`.
    """

    name: str
    magic: bytes
    prefix: str
    purpose: str = "tensorrt"


@dataclass(frozen=True)
class Key:
    """Name what a content holds for; a kind of file may add to it.

    Args:
        version: of the program that worked it out.
        gpu: name of the GPU.
        compute_capability: of the GPU, times ten.
    """

    program: ClassVar[str] = "TensorRT"
    version: str
    gpu: str
    compute_capability: int

    def __str__(self) -> str:
        capability = capability_name(self.compute_capability)
        return f"{self.program} {self.version} on {self.gpu} ({capability})"


@dataclass(frozen=True)
class Loaded:
    """What a file gave.

    Args:
        content: what the program wrote; empty where nothing can be used.
        reason: why a file that is there is not used; empty where it is, or where there is none.
        replaceable: whether the file may be written over. A file of another kind may not.
    """

    content: bytes = b""
    reason: str = ""
    replaceable: bool = True


def present_gpu(device: int = 0) -> tuple[str, int]:
    """Return the name of a GPU that is present, and ten times its compute capability.

    Raises:
        DeviceError: there is none of that number.
    """
    info = _native.cuda_device_info(device)
    major, _, minor = str(info["compute_capability"]).partition(".")
    return info["name"], 10 * int(major) + int(minor)


def driver_version() -> str:
    """Return the release of NVIDIA's driver, "unknown" where the system does not tell."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _DRIVER.read_text().strip()[:40] or "unknown"
    return "unknown"


def capability_name(compute_capability: int) -> str:
    """Return a compute capability as it is written: "8.9" of 89."""
    return f"{compute_capability // 10}.{compute_capability % 10}"


def cache_path(kind: Kind, key: Key, of: str = "") -> Path:
    """Return where a content is kept; see `cache_dir`.

    Args:
        kind: of the file.
        key: what it holds for.
        of: what else tells it from others, in letters and digits.
    """
    gpu = re.sub(r"[^a-z0-9]+", "-", key.gpu.lower()).strip("-")[:60]
    version = re.sub(r"[^0-9A-Za-z.]+", "-", key.version)[:40]
    parts = [kind.prefix, version, gpu, f"sm{key.compute_capability}", *([of] if of else [])]
    return cache_dir(kind.purpose) / f"{'-'.join(parts)}.cache"


def load(path: Path, kind: Kind, key: Key) -> Loaded:
    """Read a content that holds for a key."""
    try:
        with open_regular(path) as file:
            size_bytes = os.fstat(file.fileno()).st_size
            magic = file.read(len(kind.magic))
            if not magic:
                return Loaded()
            if magic != kind.magic:
                reason = f"it is no {kind.name} of sdengine, and is left alone"
                return Loaded(reason=reason, replaceable=False)
            if size_bytes > MAX_BYTES:
                return Loaded(reason=f"it has more than {MAX_BYTES} bytes")
            rest = file.read(size_bytes)
    except FileNotFoundError:
        return Loaded()
    except OSError as error:
        return Loaded(reason=f"it cannot be read: {error.strerror}", replaceable=False)
    end = rest.find(b"\n", 0, _MAX_HEADER_BYTES + 1)
    content = rest[end + 1 :]
    found, sha256 = _described(rest[: max(end, 0)], key)
    if found is None or hashlib.sha256(content).hexdigest() != sha256:
        return Loaded(reason="it is damaged")
    if found != key:
        return Loaded(reason=f"it holds for {found}, and this is {key}")
    return Loaded(content)


def save(path: Path, kind: Kind, key: Key, content: bytes) -> None:
    """Write a content, the whole file or nothing of it.

    Raises:
        OSError: the place cannot be written.
    """
    header = json.dumps({**asdict(key), "sha256": hashlib.sha256(content).hexdigest()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as file:
        file.write(kind.magic + header.encode() + b"\n")
        file.write(content)


def _described(header: bytes, key: Key) -> tuple[Key | None, Any]:
    """Return a header's key, with the fields of the one given, and its SHA-256."""
    try:
        described = json.loads(header)
        found = {name: described[name] for name in asdict(key)}
        sha256 = described["sha256"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None, None
    for name, value in asdict(key).items():
        given = found[name]
        # What a message shows must not steer the terminal that shows it.
        if type(given) is not type(value) or (isinstance(given, str) and not given.isprintable()):
            return None, None
    return replace(key, **found), sha256
