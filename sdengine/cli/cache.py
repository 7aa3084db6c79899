"""`sdengine cache`: what is kept of earlier exports."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List exported networks that are kept for later builds, the ones used last first."""
    from sdengine.export.onnx_cache import OnnxCache

    kept = OnnxCache()
    if clear:
        freed_bytes = kept.clear()
        if as_json:
            print(json.dumps({"path": str(kept.folder), "freed_bytes": freed_bytes}))
        else:
            print(f"{kept.folder}: {freed_bytes / 1e6:.1f} MB removed")
        return
    entries = kept.entries()
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
        print(json.dumps({"path": str(kept.folder), "entries": listed}))
        return
    for entry in entries:
        record = entry.record
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.folder.stat().st_mtime))
        print(
            f"{used}  {entry.size_bytes / 1e6:8.1f} MB  {record.checkpoint}  {record.network}  "
            f"{record.precision}  {len(record.max_error)} graphs"
        )
    total_bytes = sum(entry.size_bytes for entry in entries)
    print(f"{kept.folder}: {total_bytes / 1e6:.1f} MB in {len(entries)} entries")
