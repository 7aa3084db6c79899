"""Build one engine in a process of its own, which `tensorrt_engine` starts.

The builder takes several times the network's weights, and what else lies in a process adds to it;
so this one holds nothing but the builder. It reads a job as JSON from standard input and writes
lines of JSON to standard output: progress, then the result or an error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any, TextIO

from sdengine.export.memory import PeakMemory

_MAX_LOG_LINES = 40


def main() -> int:
    """Do the job and say how it went."""
    # Libraries may print to standard output too; what they say goes to standard error.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    job = json.load(sys.stdin)
    log: deque[str] = deque(maxlen=_MAX_LOG_LINES)
    try:
        result = _build(job, log, channel)
    except _Failure as failure:
        _send(channel, {"error": str(failure), "log": list(log)})
        return 1
    except MemoryError:
        _send(channel, {"error": "memory ran out", "log": list(log)})
        return 1
    _send(channel, {"result": result})
    return 0


class _Failure(Exception):
    pass


def _build(job: dict[str, Any], log: deque[str], channel: TextIO) -> dict[str, Any]:
    trt = importlib.import_module(job["module"])
    started = time.perf_counter()
    memory = PeakMemory()
    logger = _make_logger(trt, log)
    if job["plugins_for"] is not None:
        from sdengine.export.tensorrt_plugins import register_plugins

        register_plugins(importlib.import_module(f"{job['module']}.plugin"), job["plugins_for"])
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job["onnx"]):
        problems = [str(parser.get_error(i)) for i in range(min(parser.num_errors, 3))]
        raise _Failure(f"the parser refuses the graph: {'; '.join(problems)}")
    _let_attention_decompose(trt, network)
    config = _make_config(trt, builder, job)
    for shapes in job["profiles"]:
        profile = builder.create_optimization_profile()
        for name, (least, usual, most) in shapes.items():
            profile.set_shape(name, least, usual, most)
        if config.add_optimization_profile(profile) < 0:
            raise _Failure(f"the builder refuses the shapes {shapes}")
    monitor = _make_monitor(trt, channel)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise _Failure("cancelled" if monitor.cancelled else "the builder gave no engine")
    output = Path(job["output"])
    with output.open("wb") as file:
        file.write(engine)
    if job["timing_cache"] is not None and (cache := config.get_timing_cache()) is not None:
        Path(job["timing_cache"]).write_bytes(bytes(cache.serialize()))
    return {
        "version": str(trt.__version__),
        "seconds": time.perf_counter() - started,
        "peak_bytes": memory.end(),
        "engine_bytes": output.stat().st_size,
    }


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Allow other operations where no fused kernel takes the size of a head."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name == "ATTENTION_INPUT":
            # Layers come as their base class; the real one is the caller's to name.
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _make_config(trt: Any, builder: Any, job: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    if job["workspace_bytes"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    if job["optimization_level"] is not None:
        config.builder_optimization_level = job["optimization_level"]
    if job["capabilities"]:
        config.num_compute_capabilities = len(job["capabilities"])
        for index, cc in enumerate(job["capabilities"]):
            name = f"SM{cc}"
            if not hasattr(trt.ComputeCapability, name):
                raise _Failure(f"{job['module']} {trt.__version__} does not know {name}")
            config.set_compute_capability(getattr(trt.ComputeCapability, name), index)
    # So that a context can be captured into a CUDA graph.
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if job["timing_cache"] is not None:
        path = Path(job["timing_cache"])
        known = path.read_bytes() if path.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    return config


def _make_logger(trt: Any, log: deque[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.Severity.WARNING:
                log.append(f"{severity.name.lower()}: {message[:400]}")

    return Logger()


def _make_monitor(trt: Any, channel: TextIO) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Tell of the outermost phase; a reader that is gone cancels the build."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.cancelled = False
            self._phases: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._phases[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name in self._phases:
                told = {"phase": phase_name, "step": step, "steps": self._phases[phase_name]}
                self.cancelled = self.cancelled or not _send(channel, told)
            return not self.cancelled

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

    return Monitor()


def _send(channel: TextIO, content: dict[str, Any]) -> bool:
    try:
        channel.write(json.dumps(content) + "\n")
        channel.flush()
    except OSError:
        return False
    return True
