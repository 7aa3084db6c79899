"""`sdengine cache`: what is kept of earlier exports, builds and loads."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List exported networks, packed weights and TensorRT's timings that are kept, newest first."""
    from sdengine.backends.native import packed_cache
    from sdengine.export import timing_cache
    from sdengine.export.onnx_cache import OnnxCache

    kept = OnnxCache()
    if clear:
        freed_bytes = kept.clear() + packed_cache.clear() + timing_cache.clear()
        if as_json:
            print(json.dumps({"path": str(kept.folder), "freed_bytes": freed_bytes}))
        else:
            print(f"{kept.folder.parent}: {freed_bytes / 1e6:.1f} MB removed")
        return
    entries = kept.entries()
    packed, timings = packed_cache.kept_files(), timing_cache.kept_files()
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
        files, caches = (
            [{"path": str(path), "size_bytes": path.stat().st_size} for path in paths]
            for paths in (packed, timings)
        )
        found = {"path": str(kept.folder), "entries": listed, "packed": files, "timings": caches}
        print(json.dumps(found))
        return
    for entry in entries:
        record = entry.record
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.folder.stat().st_mtime))
        print(
            f"{used}  {entry.size_bytes / 1e6:8.1f} MB  {record.checkpoint}  {record.network}  "
            f"{record.precision}  {len(record.max_error)} graphs"
        )
    for path in packed:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        network = path.name.rpartition("-")[0]
        print(f"{used}  {path.stat().st_size / 1e6:8.1f} MB  packed weights of {network}")
    for path in timings:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
        print(f"{used}  {path.stat().st_size / 1e6:8.1f} MB  TensorRT's {path.stem}")
    total_bytes = sum(entry.size_bytes for entry in entries)
    total_bytes += sum(path.stat().st_size for path in (*packed, *timings))
    count = len(entries) + len(packed) + len(timings)
    print(f"{kept.folder.parent}: {total_bytes / 1e6:.1f} MB in {count} entries")
