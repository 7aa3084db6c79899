"""Worker: one job with TensorRT's builder in a process of its own, which `process` starts.

The builder takes several times the network's weights, and what else lies in a process adds to it;
so this one holds nothing but the builder. It reads a job as JSON from standard input and writes
lines of JSON to standard output: progress, then the result or an error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any, TextIO

from sdengine.compilers.tensorrt.builder import BuilderFailure, BuilderLog, build_file


def main() -> int:
    """Do the job and say how it went."""
    # Libraries may print to standard output too; what they say goes to standard error.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)
    log = BuilderLog()
    try:
        result = _do(job, log, channel)
    except BuilderFailure as failure:
        _send(channel, {"error": str(failure), "log": list(log.problems)})
        return 1
    except MemoryError:
        _send(channel, {"error": "memory ran out", "log": list(log.problems)})
        return 1
    _send(channel, {"result": result})
    return 0


def _do(job: dict[str, Any], log: BuilderLog, channel: TextIO) -> dict[str, Any]:
    trt = importlib.import_module(job["module"])
    if job.get("plugins_for") is not None:
        from sdengine.compilers.tensorrt.plugin_parts import PluginTarget
        from sdengine.compilers.tensorrt.plugins import register_plugins

        target = PluginTarget(**job["plugins_for"])
        register_plugins(importlib.import_module(f"{job['module']}.plugin"), target)

    def tell(phase: str, step: int, steps: int) -> bool:
        return _send(channel, {"phase": phase, "step": step, "steps": steps})

    if job["task"] == "time":
        from sdengine.compilers.tensorrt.kernel_timing import time_job

        return time_job(trt, job, log, tell)
    if job["task"] == "time_engines":
        from sdengine.compilers.tensorrt.engine_timing import time_engines

        return time_engines(trt, job, log, tell)
    return build_file(trt, job, log, tell)


def _send(channel: TextIO, content: dict[str, Any]) -> bool:
    """Write a line; say whether anybody still reads."""
    try:
        channel.write(json.dumps(content) + "\n")
        channel.flush()
    except OSError:
        return False
    return True
