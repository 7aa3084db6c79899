"""Trace of a profile, which chrome://tracing and Perfetto open.

Source: "Trace Event Format", the document of the Chrome project: complete events ("X") and metadata
("M"), times in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from sdengine.benchmarks.suite.profiles.tables import title
from sdengine.errors import OutputError
from sdengine.storage.whole_file import whole_file

_PROCESS, _LEVELS, _OPERATIONS = 1, 1, 2
_TOLD = (
    "kind", "level", "flops", "products", "bytes_read", "bytes_written", "bound", "percent_of_peak",
    "percent_of_time", "least_ms", "values",
)  # fmt: skip


def trace_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a trace of one call: a track of levels, and below it one of operations.

    Operations follow each other without gaps, each as long as its median.
    """
    events = [
        _named("process_name", 0, title(record)),
        _named("thread_name", _LEVELS, "levels"),
        _named("thread_name", _OPERATIONS, "operations"),
    ]
    levels, operations, moment = [], [], 0.0
    for level, steps in groupby(record["steps"], key=lambda step: str(step["level"])):
        begin = moment
        for one in steps:
            taken = 1e3 * one["ms"]
            told = {key: one[key] for key in _TOLD}
            operations.append(_complete(one["name"], one["kind"], _OPERATIONS, moment, taken, told))
            moment += taken
        levels.append(_complete(level, "level", _LEVELS, begin, moment - begin, {}))
    about = {
        key: record[key] for key in ("time", "network", "backend", "precision", "size", "rows")
    }
    return {
        "traceEvents": [*events, *levels, *operations],
        "displayTimeUnit": "ms",
        "otherData": {**about, "roofline": record["roofline"]},
    }


def write_trace(record: Mapping[str, Any], path: Path) -> None:
    """Write a trace in place of what is there.

    Raises:
        OutputError: it cannot be written.
    """
    content = json.dumps(trace_of(record), allow_nan=False).encode()
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None


def _named(what: str, track: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": _PROCESS, "tid": track, "args": {"name": name}}


def _complete(
    name: str, category: str, track: int, begin_us: float, us: float, told: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "ph": "X", "name": name, "cat": category, "pid": _PROCESS, "tid": track,
        "ts": begin_us, "dur": us, "args": dict(told),
    }  # fmt: skip
