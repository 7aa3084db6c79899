"""`sdengine cache`: list and clear what earlier exports, builds and loads keep."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sdengine.cli.terminal import progress_bar, say, say_json
from sdengine.errors import ConfigError, OutputError, SdengineError

if TYPE_CHECKING:
    from sdengine.export.cache import OnnxCache
    from sdengine.storage.cache_files import CacheFiles


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read packed weights through; remove damaged ones.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what is kept, newest first: exports, packed weights, GPUs' files, estimates."""
    from sdengine.backends import kernel_choices
    from sdengine.backends.native import packed_cache
    from sdengine.backends.tensorrt import runtime_cache
    from sdengine.building import kept_scratch
    from sdengine.compilers.tensorrt import timing_cache
    from sdengine.export.cache import OnnxCache
    from sdengine.storage.cache_files import REMEMBERED

    if clear and verify:
        raise ConfigError("--verify: not with --clear, which leaves nothing to verify.")
    exports = OnnxCache()
    try:
        place = exports.folder
    except OSError as error:
        raise OutputError(
            f"nothing is kept: {error.strerror}. SDENGINE_CACHE names a folder."
        ) from None
    kinds = {
        "packed": packed_cache.KEPT,
        "timings": timing_cache.KEPT,
        "kernels": runtime_cache.KEPT,
        "choices": kernel_choices.KEPT,
        "plans": kept_scratch.KEPT,
    }
    if clear:
        with progress_bar("removing", quiet=as_json):
            REMEMBERED.clear()
            freed_bytes = exports.clear() + sum(kept.clear() for kept in kinds.values())
        if as_json:
            say_json({"path": str(place), "freed_bytes": freed_bytes})
        else:
            say(f"{place.parent}: {freed_bytes / 1e6:.1f} MB removed")
    elif verify:
        _verify(packed_cache.KEPT, as_json)
    elif as_json:
        say_json(_described(exports, kinds))
    else:
        _list(exports, kinds)


def _verify(packed: CacheFiles, as_json: bool) -> None:
    """Check every tensor; a network whose file is removed is packed again when next loaded."""
    from sdengine.storage.checked_tensors import read_through

    files, damaged = packed.files(), {}
    with progress_bar("reading", quiet=as_json) as progress:
        for index, file in enumerate(files):
            progress("reading packed weights", index, len(files))
            try:
                read_through(file.path)
            except FileNotFoundError:
                continue  # removed meanwhile
            except (OSError, SdengineError) as error:
                damaged[str(file.path)] = str(error)
                file.path.unlink(missing_ok=True)
    size_bytes = sum(file.size_bytes for file in files)
    if as_json:
        say_json({"files": len(files), "size_bytes": size_bytes, "removed": damaged})
        return
    for reason in damaged.values():
        say(f"removed: {reason}")
    sound = len(files) - len(damaged)
    read = f"{sound} of {len(files)} files as written, {size_bytes / 1e6:.1f} MB read"
    say(f"{packed.folder}: {read}")


def _described(exports: OnnxCache, kinds: dict[str, CacheFiles]) -> dict[str, object]:
    from sdengine.storage.cache_place import cache_limit_bytes

    listed = [
        {
            "key": entry.folder.name,
            "checkpoint": entry.record.checkpoint,
            "network": entry.record.network,
            "precision": entry.record.precision,
            "size_bytes": entry.size_bytes,
            "graphs": entry.record.max_error,
        }
        for entry in exports.entries()
    ]
    files = {
        kind: [{"path": str(f.path), "size_bytes": f.size_bytes} for f in kept.files()]
        for kind, kept in kinds.items()
    }
    leftovers = [
        {"path": path, "size_bytes": size} for path, size in _leftovers(exports, kinds).items()
    ]
    told = {"path": str(exports.folder), "limit_bytes": cache_limit_bytes()}
    return {**told, "entries": listed, **files, "leftovers": leftovers}


def _list(exports: OnnxCache, kinds: dict[str, CacheFiles]) -> None:
    from sdengine.storage.cache_place import cache_limit_bytes

    sizes = []
    for entry in exports.entries():
        record = entry.record
        what = f"{record.checkpoint}  {record.network}  {record.precision}"
        used = entry.folder.stat().st_mtime
        _show(used, entry.size_bytes, f"{what}  {len(record.max_error)} graphs")
        sizes.append(entry.size_bytes)
    for kind, kept in kinds.items():
        for file in kept.files():
            _show(file.used, file.size_bytes, _KINDS[kind](file.path))
            sizes.append(file.size_bytes)
    for path, size_bytes in _leftovers(exports, kinds).items():
        what = "left by a process that was killed; the next run removes it"
        _show(os.lstat(path).st_mtime, size_bytes, what)
        sizes.append(size_bytes)
    limit = f"at most {cache_limit_bytes() / (1 << 30):.1f} GiB of each kind"
    shown = f"{sum(sizes) / 1e6:.1f} MB in {len(sizes)} entries"
    say(f"{exports.folder.parent}: {shown}, {limit} (SDENGINE_CACHE_LIMIT)")


def _leftovers(exports: OnnxCache, kinds: dict[str, CacheFiles]) -> dict[str, int]:
    """Return the bytes of what killed processes left, by path."""
    from sdengine.storage.temporary import size_of

    found = {str(path): size_of(path) for path in exports.leftovers()}
    for kept in kinds.values():
        found |= {str(file.path): file.size_bytes for file in kept.leftovers()}
    return found


_KINDS: dict[str, Callable[[Path], str]] = {
    "packed": lambda path: f"packed weights of {path.name.rpartition('-')[0]}",
    "timings": lambda path: f"TensorRT's {path.stem}",
    "kernels": lambda path: f"TensorRT's {path.stem}",
    "choices": lambda path: f"triton's {path.stem}",
    "plans": lambda path: f"memory of a network {path.stem[:16]}",
}


def _show(used: float, size_bytes: int, what: str) -> None:
    shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
    say(f"{shown}  {size_bytes / 1e6:8.1f} MB  {what}")
