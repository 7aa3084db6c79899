"""Kept scratch: what estimates found in the graph of a network, which is traced but once."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sdengine.export.cache import make_key
from sdengine.storage.cache_files import CacheFiles
from sdengine.storage.whole_file import whole_file

KEPT = CacheFiles("plans", "*.json")
_MAX_BYTES = 1 << 20
_EXPORT = Path(__file__).parent.parent / "export"
# What decides, besides what decides how a graph looks, how much memory is found in one.
_CODE = ("fused_functions.py", "fusion.py", "liveness.py", "static_shapes.py")

Sizes = dict[tuple[int, int], int]


def find(content: dict[str, Any]) -> Sizes:
    """Return the bytes by width and height that are known; nothing where none are.

    Args:
        content: what they follow from, as values of JSON.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        with _path(content).open("rb") as file:
            known = json.loads(file.read(_MAX_BYTES))
        return {_size(name): _bytes(value) for name, value in known.items()}
    return {}


def keep(content: dict[str, Any], found: Sizes) -> None:
    """Keep what was found for later; where that cannot be written, it is found again."""
    known = {**find(content), **found}
    named = {f"{width}x{height}": size_bytes for (width, height), size_bytes in known.items()}
    with contextlib.suppress(OSError):
        KEPT.folder.mkdir(parents=True, exist_ok=True)
        with whole_file(_path(content)) as file:
            file.write(json.dumps(named).encode())


def _path(content: dict[str, Any]) -> Path:
    versions = {package: version(package) for package in ("onnx", "torch")}
    return KEPT.folder / f"{make_key({**content, **versions, 'liveness': _code_sha256()})}.json"


def _size(name: str) -> tuple[int, int]:
    width, height = name.split("x")
    return int(width), int(height)


def _bytes(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(value)
    return value


@functools.cache
def _code_sha256() -> str:
    digest = hashlib.sha256()
    for name in _CODE:
        digest.update((_EXPORT / name).read_bytes())
    return digest.hexdigest()
