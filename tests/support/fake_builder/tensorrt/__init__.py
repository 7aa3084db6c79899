"""Stands for full TensorRT in the builder's process: engines are lists of a graph's operators.

What it does follows from the environment variable FAKE_TENSORRT, a JSON object: `ms` has the time
of an operator as "native" or as "triton", `engine_ms` that of an engine without plugins, with those
of attention alone and with all as "native", "mixed", "triton", `fails` has "triton" where plugins
give no engine, `lost` has those of the three that do not load,
`refuses_cache` makes it refuse what a timing cache holds, `waits` makes each step take long.
"""

from __future__ import annotations

import enum
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from sdengine import _native

__version__ = "11.4.0"
_OPTIONS: dict[str, Any] = json.loads(os.environ.get("FAKE_TENSORRT", "{}"))
_ACTIVATION_BYTES = 1000


class _HostBuffer:
    """Stands for memory of a GPU."""

    def __init__(self, size_bytes: int) -> None:
        self.address = 4096
        self.size_bytes = size_bytes

    def upload(self, array: np.ndarray[Any, Any]) -> None:
        assert array.nbytes == self.size_bytes


# This process has no GPU; it is the builder's own, so that nobody else sees the change.
_native.CudaBuffer = _HostBuffer  # type: ignore[assignment, misc]
_native.cuda_synchronize = lambda device=0: None
_native.cuda_device = lambda index=0: _native.CpuDevice()
# A clock that only engines move on.
_clock = [0.0]
time.perf_counter = lambda: _clock[0]
_ENGINE_MS = _OPTIONS.get("engine_ms", {"native": 3.0, "mixed": 2.0, "triton": 2.5})


class NetworkDefinitionCreationFlag(enum.IntEnum):
    """As TensorRT's."""

    STRONGLY_TYPED = 1


class BuilderFlag(enum.Enum):
    """As TensorRT's, as far as builds go."""

    REQUIRE_USER_ALLOCATION = 0


class MemoryPoolType(enum.Enum):
    """As TensorRT's."""

    WORKSPACE = 0


class ILogger:
    """Takes messages."""

    class Severity(enum.IntEnum):
        """As TensorRT's."""

        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Severity, message: str) -> None:
        """Take a message."""


class IProgressMonitor:
    """Is told of phases."""

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        """Begin a phase."""

    def step_complete(self, phase_name: str, step: int) -> bool:
        """End a step; False cancels."""
        return True

    def phase_finish(self, phase_name: str) -> None:
        """End a phase."""


class IProfiler:
    """Is told times."""

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Take a time."""


class _TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content


class _Config:
    def __init__(self) -> None:
        self.flags: set[str] = set()
        self.profiles: list[dict[str, Any]] = []
        self.progress_monitor: Any = None
        self._cache: _TimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self.flags.add(flag.name)

    def set_memory_pool_limit(self, pool: MemoryPoolType, size_bytes: int) -> None:
        assert size_bytes > 0

    def add_optimization_profile(self, profile: dict[str, Any]) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> _TimingCache:
        return _TimingCache(content)

    def set_timing_cache(self, cache: _TimingCache, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        if cache.content and _OPTIONS.get("refuses_cache"):
            return False
        self._cache = cache
        return True

    def get_timing_cache(self) -> _TimingCache | None:
        return self._cache


class _Profile(dict[str, Any]):
    def set_shape(self, name: str, least: Any, usual: Any, most: Any) -> None:
        self[name] = (least, usual, most)


class _Network:
    num_layers = 0
    operators: tuple[tuple[str, bool], ...] = ()
    tensors: tuple[str, ...] = ()


class OnnxParser:
    """Reads a graph's operators."""

    num_errors = 0

    def __init__(self, network: _Network, logger: ILogger) -> None:
        self.network = network

    def parse_from_file(self, path: str) -> bool:
        graph = onnx.load(path, load_external_data=False).graph
        for node in graph.node:
            assert not node.domain
        self.network.operators = tuple(
            (node.op_type, any(a.name == "plugin_namespace" for a in node.attribute))
            for node in graph.node
        )
        weights = {tensor.name for tensor in graph.initializer}
        ports = [port.name for port in (*graph.input, *graph.output)]
        self.network.tensors = tuple(name for name in ports if name not in weights)
        return True


class Builder:
    """Writes an engine: JSON of what the graph holds."""

    def __init__(self, logger: ILogger) -> None:
        self._logger = logger

    def create_network(self, flags: int) -> _Network:
        return _Network()

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: _Network, config: _Config) -> bytes | None:
        log, severities = self._logger.log, ILogger.Severity
        has_plugin = any(plugin for _, plugin in network.operators)
        present = {*config.flags, *(("triton",) if has_plugin else ())}
        for failing in _OPTIONS.get("fails", ()):
            if failing in present:
                log(severities.ERROR, f"{failing} is what this one cannot do")
                return None
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        for step in range(2):
            time.sleep(_OPTIONS.get("waits", 0))
            if not monitor.step_complete("Building", step):
                Path(_OPTIONS["cancelled"]).touch()
                return None
        monitor.phase_finish("Building")
        for index in range(len(config.profiles)):
            log(severities.VERBOSE, f"Constructing optimization profile number {index} [1/1].")
            told = _ACTIVATION_BYTES * (index + 1)
            log(severities.INFO, f"Total Activation Memory: {told} bytes")
        log(severities.INFO, "Total Weights Memory: 77 bytes")
        cache = config.get_timing_cache()
        if cache is not None:
            cache.content += b"+"
        engine = {"operators": network.operators, "tensors": network.tensors}
        return json.dumps({**engine, "profiles": config.profiles}).encode()


class _Context:
    def __init__(self, engine: dict[str, Any]) -> None:
        self._engine = engine
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._profile = 0
        self.profiler: IProfiler | None = None

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream
        self._profile = index
        return 0 <= index < len(self._engine["profiles"])

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self._engine["profiles"][self._profile][name]
        self._shapes[name] = shape
        return all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return name in self._engine["tensors"]

    def execute_async_v3(self, stream: int) -> bool:
        assert self._addresses.keys() == set(self._engine["tensors"])
        if self.profiler is None:
            assert self._shapes.keys() == self._engine["profiles"][self._profile].keys()
            # Larger images come in later profiles here.
            _clock[0] += (1 + self._profile) * _ENGINE_MS[_kernels_of(self._engine)] / 1000
            return True
        kind = "triton" if any(plugin for _, plugin in self._engine["operators"]) else "native"
        operators = " ".join(name for name, _ in self._engine["operators"]).lower()
        family = "attention" if "attention" in operators else "group_norm"
        # Two layers, of which one is what surrounds the other.
        for share in (0.25, 0.75):
            self.profiler.report_layer_time(operators, share * _OPTIONS["ms"][kind][family])
        return True


def _kernels_of(engine: dict[str, Any]) -> str:
    """Return which kernels an engine has, by whether all, some or none of a kind are plugins."""
    plugins = {name for name, plugin in engine["operators"] if plugin}
    return "native" if not plugins else "mixed" if plugins == {"attention"} else "triton"


class _Engine:
    def __init__(self, content: dict[str, Any]) -> None:
        self._content = content

    def create_execution_context(self) -> _Context:
        return _Context(self._content)


class Runtime:
    """Reads what `Builder` wrote."""

    def __init__(self, logger: ILogger) -> None:
        pass

    def deserialize_cuda_engine(self, engine: bytes) -> _Engine | None:
        content = json.loads(engine)
        lost = content["profiles"] and _kernels_of(content) in _OPTIONS.get("lost", ())
        return None if lost else _Engine(content)
