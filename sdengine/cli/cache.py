"""`sdengine cache`: list and clear what earlier exports, builds and loads keep."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sdengine.cli.terminal import progress_bar, say, say_json


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what is kept, newest first: exports, packed weights, TensorRT's files, estimates."""
    from sdengine.backends.native import packed_cache
    from sdengine.backends.tensorrt import runtime_cache
    from sdengine.building import kept_scratch
    from sdengine.compilers.tensorrt import timing_cache
    from sdengine.export.cache import OnnxCache

    exports = OnnxCache()
    kinds = {
        "packed": packed_cache.KEPT,
        "timings": timing_cache.KEPT,
        "kernels": runtime_cache.KEPT,
        "plans": kept_scratch.KEPT,
    }
    if clear:
        with progress_bar("removing", quiet=as_json):
            freed_bytes = exports.clear() + sum(kept.clear() for kept in kinds.values())
        if as_json:
            say_json({"path": str(exports.folder), "freed_bytes": freed_bytes})
        else:
            say(f"{exports.folder.parent}: {freed_bytes / 1e6:.1f} MB removed")
        return
    entries = exports.entries()
    found = {kind: kept.files() for kind, kept in kinds.items()}
    if as_json:
        listed = [
            {
                "key": entry.folder.name,
                "checkpoint": entry.record.checkpoint,
                "network": entry.record.network,
                "precision": entry.record.precision,
                "size_bytes": entry.size_bytes,
                "graphs": entry.record.max_error,
            }
            for entry in entries
        ]
        files = {
            kind: [{"path": str(file.path), "size_bytes": file.size_bytes} for file in some]
            for kind, some in found.items()
        }
        say_json({"path": str(exports.folder), "entries": listed, **files})
        return
    for entry in entries:
        record = entry.record
        what = f"{record.checkpoint}  {record.network}  {record.precision}"
        used = entry.folder.stat().st_mtime
        _show(used, entry.size_bytes, f"{what}  {len(record.max_error)} graphs")
    for kind, some in found.items():
        for file in some:
            _show(file.used, file.size_bytes, _KINDS[kind](file.path))
    sizes = [entry.size_bytes for entry in entries]
    sizes += [file.size_bytes for some in found.values() for file in some]
    say(f"{exports.folder.parent}: {sum(sizes) / 1e6:.1f} MB in {len(sizes)} entries")


_KINDS: dict[str, Callable[[Path], str]] = {
    "packed": lambda path: f"packed weights of {path.name.rpartition('-')[0]}",
    "timings": lambda path: f"TensorRT's {path.stem}",
    "kernels": lambda path: f"TensorRT's {path.stem}",
    "plans": lambda path: f"memory of a network {path.stem[:16]}",
}


def _show(used: float, size_bytes: int, what: str) -> None:
    shown = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
    say(f"{shown}  {size_bytes / 1e6:8.1f} MB  {what}")
