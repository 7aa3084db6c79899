"""Stands for TensorRT's run time: engines are descriptions of ONNX files, computed by onnxruntime.

Contexts queue on streams of the native runtime's CPU device, which captures and replays as a GPU
does. It refuses what TensorRT refuses: shapes outside the chosen profile, tensors without an
address, names that the engine does not have, a first run within a capture, too little scratch. And
it writes all over its scratch, as engines do, so that whatever else lies there is lost. A context's
first run compiles its kernels, unless the runtime cache that it was made with has them.
"""

from __future__ import annotations

import enum
import json
import math
import mmap
import sys
import weakref
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from support.host_memory import memory_at

from sdengine import _native
from sdengine.backends.tensorrt import backend as tensorrt
from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.compilers.tensorrt import engine as tensorrt_engine
from sdengine.errors import DeviceError
from sdengine.export.layer_choice import choose_layer
from sdengine.export.network import ExportedNetwork

DTYPES = {"tensor(float16)": "f2", "tensor(int64)": "i8", "tensor(float)": "f4"}


class Gpu:
    """The device that contexts compute on, how much of it may be had, and its number."""

    device: ClassVar[_native.CpuDevice] = _native.CpuDevice()
    others: ClassVar[dict[int, _native.CpuDevice]] = {}  # those of other numbers
    names: ClassVar[tuple[str, ...]] = ("a GPU that is none",)
    opened: ClassVar[list[int]] = []

    @classmethod
    def open(cls, index: int = 0) -> _native.CpuDevice:
        cls.opened.append(index)
        return cls.others.setdefault(index, _native.CpuDevice(1 << 40)) if index else cls.device

    @classmethod
    def describe(cls, index: int = 0) -> dict[str, str]:
        if not 0 <= index < len(cls.names):
            raise DeviceError(f"there is no GPU {index}")
        return {"name": cls.names[index], "compute_capability": "8.9"}

    @classmethod
    def block(cls, size_bytes: int) -> _native.MemoryPool | None:
        """Take memory, as TensorRT and the driver do beside what the engine plans."""
        if size_bytes == 0:
            return None
        return _native.MemoryPool({"": [("block", size_bytes, 0, 0)]}, device=cls.device)


class ExecutionContextAllocationStrategy(enum.Enum):
    """Who gives a context its scratch."""

    STATIC = 0
    USER_MANAGED = 2


class RuntimeCache:
    """Holds which kernels were compiled, as names."""

    START: ClassVar[bytes] = b"kernels of 0.0: "

    def __init__(self) -> None:
        self.busy = 0  # contexts that are running
        self.kernels: set[str] = set()

    def deserialize(self, blob: bytes) -> bool:
        content = bytes(memoryview(blob))
        if not content.startswith(self.START):
            return False
        self.kernels |= set(json.loads(content[len(self.START) :]))
        return True

    def serialize(self) -> Any:
        assert not self.busy, "a cache is written while an engine runs"
        content = self.START + json.dumps(sorted(self.kernels)).encode() if self.kernels else b""
        return np.frombuffer(content, np.uint8)


class KernelSpecialization(enum.Enum):
    """When kernels for a new shape are compiled: beside its first runs, or before."""

    LAZY = 0
    EAGER = 1


class RuntimeConfig:
    """What a context is made with; everything must be set before."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.strategy = ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy = KernelSpecialization.LAZY
        self.cache: RuntimeCache | None = None

    def create_runtime_cache(self) -> RuntimeCache:
        return RuntimeCache()

    def set_runtime_cache(self, cache: RuntimeCache) -> bool:
        assert isinstance(cache, RuntimeCache)
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(
        self, strategy: ExecutionContextAllocationStrategy
    ) -> None:
        self.strategy = strategy


class Context:
    """Runs an engine at one profile."""

    def __init__(
        self, engine: Engine, how: ExecutionContextAllocationStrategy | RuntimeConfig
    ) -> None:
        # Whoever made the context must hold what it was made with.
        self.held: list[weakref.ref[Any]] = []
        strategy = how
        if isinstance(how, RuntimeConfig):
            assert how.engine is engine, "a configuration is used for another engine"
            specialization = how.dynamic_shapes_kernel_specialization_strategy
            assert specialization is KernelSpecialization.EAGER, "a graph may hold fallbacks"
            strategy = how.strategy
            self.held = [weakref.ref(part) for part in (how, how.cache) if part is not None]
            if how.cache is not None:
                engine.caches.add(how.cache)
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self.engine = engine
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = (0, 0)
        self.runs = 0
        self.blocks = [Gpu.block(engine.context_bytes)]
        engine.contexts.add(self)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return 0 <= index < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.engine.profiles[self.profile][name]
        self.shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names and address % 256 == 0

    def update_device_memory_size_for_shapes(self) -> int:
        assert self.shapes.keys() == {port.name for port in self.engine.session.get_inputs()}
        return self.engine.get_device_memory_size_for_profile_v2(self.profile)

    def set_device_memory(self, address: int, size_bytes: int) -> None:
        assert address % 256 == 0
        assert size_bytes >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.scratch = (address, size_bytes)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.engine.capturable

    def execute_async_v3(self, stream: int) -> bool:
        assert self.addresses.keys() == self.engine.names and self.scratch[0]
        self.engine.enqueued += 1
        before = self.runs
        Gpu.device.enqueue(stream, self._run)
        if before == 0:
            self.blocks.append(Gpu.block(self.engine.first_run_bytes))
        # What is captured does not run yet: that must not be a context's first run.
        return self.runs > before or (before > 0 and self.engine.capturable)

    def _compile(self) -> None:
        held: list[Any] = [reference() for reference in self.held]
        assert None not in held, "a context's configuration or cache is gone"
        kernel = f"{self.engine.network} {self.profile} {sorted(self.shapes.items())}"
        for cache in held[1:]:
            if kernel in cache.kernels:
                return
            cache.kernels.add(kernel)
        self.engine.compiled.append(self.engine.network)

    def _run(self) -> None:
        if self.runs == 0:
            self._compile()
        caches = [cache for part in self.held if isinstance(cache := part(), RuntimeCache)]
        for cache in caches:
            cache.busy += 1
        try:
            self._compute()
        finally:
            for cache in caches:
                cache.busy -= 1

    def _compute(self) -> None:
        self.runs += 1
        self.engine.runs += 1
        session = self.engine.session
        feeds = {
            port.name: memory_at(
                self.addresses[port.name], DTYPES[port.type], self.shapes[port.name]
            ).copy()
            for port in session.get_inputs()
        }
        self.engine.rows_run += [len(next(iter(feeds.values())))]
        address, size_bytes = self.scratch
        memory_at(address, "u1", (size_bytes,))[:] = 0xFF
        names = [port.name for port in session.get_outputs()]
        for name, value in zip(names, session.run(names, feeds), strict=True):
            if self.engine.gives_nan_in_run == self.engine.runs:
                value = np.full_like(value, np.nan)
            memory_at(self.addresses[name], value.dtype.str, value.shape)[...] = value


class Engine:
    """Reads a description that `compile_fake` wrote."""

    made: ClassVar[list[Engine]] = []
    capturable: ClassVar[bool] = True
    context_bytes: ClassVar[int] = 0  # of the GPU's memory, of each context
    first_run_bytes: ClassVar[int] = 0  # more of it
    compiled: ClassVar[list[str]] = []  # networks, once for each compilation at a first run

    def __init__(self, content: bytes) -> None:
        described = json.loads(content)
        self.network = described["network"]
        self.profiles: list[dict[str, list[list[int]]]] = described["profiles"]
        self.num_optimization_profiles = len(self.profiles)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # others spin, and tests take turns on a machine
        self.session = onnxruntime.InferenceSession(described["onnx"], options)
        ports = (*self.session.get_inputs(), *self.session.get_outputs())
        self.names = {port.name for port in ports}
        self.caches: weakref.WeakSet[RuntimeCache] = weakref.WeakSet()  # of its contexts
        self.contexts: weakref.WeakSet[Context] = weakref.WeakSet()  # graphs hold theirs
        self.enqueued = 0  # calls from Python
        self.runs = 0
        self.rows_run: list[int] = []  # of each run
        self.gives_nan_in_run = 0
        self.made.append(self)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        return list(self.profiles[index][name])

    def get_device_memory_size_for_profile_v2(self, index: int) -> int:
        inputs = sum(math.prod(shapes[2]) for shapes in self.profiles[index].values())
        return 1000 + 100 * inputs

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self)

    def create_execution_context(
        self, how: ExecutionContextAllocationStrategy | RuntimeConfig
    ) -> Context:
        return Context(self, how)


class Runtime:
    """Makes engines of files, and writes to the first logger of the process, as TensorRT does."""

    first_logger: ClassVar[weakref.ref[Logger] | None] = None

    def __init__(self, logger: Logger) -> None:
        if Runtime.first_logger is None:
            Runtime.first_logger = weakref.ref(logger)

    def deserialize_cuda_engine(self, content: Any) -> Engine | None:
        assert self.first_logger is not None and self.first_logger() is not None, "no logger"
        view = memoryview(content)
        assert isinstance(view.obj, mmap.mmap) and view.readonly, "the engine is read into memory"
        content = bytes(view)
        return Engine(content) if content.startswith(b"{") else None


class Logger:
    """Says nothing."""

    ERROR = 2

    def __init__(self, severity: int) -> None:
        pass


def compile_fake(
    network: ExportedNetwork, out_dir: Path, spec: CompileSpec, flavour: object
) -> Compiled:
    """Write a description in an engine's place."""
    assert network.onnx_path is not None
    graph = onnx.load(network.onnx_path, load_external_data=False)
    graph, network = choose_layer(graph, network)
    assert network.onnx_path is not None
    place = network.onnx_path.with_name(f"{out_dir.name}.{network.onnx_path.name}")
    onnx.save(graph, place)  # beside its weights
    profiles = tensorrt_engine.make_profiles(network, spec)
    path = out_dir / f"{network.name}.engine"
    described = {"network": network.name, "onnx": str(place), "profiles": profiles}
    path.write_text(json.dumps(described))
    return Compiled([path.name], inputs=network.inputs, outputs=network.outputs)


def made(network: str) -> list[Engine]:
    """Return the engines of a network, in the order in which they were opened."""
    found = [engine for engine in Engine.made if network in engine.network]
    return [engine for engine in found if network != "text_encoder" or "_2" not in engine.network]


def install(monkeypatch: pytest.MonkeyPatch, limit_bytes: int = 0) -> None:
    """Put the stand-ins into the places of TensorRT-RTX and of the GPU."""
    module = ModuleType("tensorrt_rtx")
    module.__dict__.update(
        __version__="0.0",
        Runtime=Runtime,
        Logger=Logger,
        ExecutionContextAllocationStrategy=ExecutionContextAllocationStrategy,
    )
    module.__spec__ = sys.modules["json"].__spec__
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr(tensorrt_engine, "compile_engine", compile_fake)
    monkeypatch.setattr(_native, "cuda_available", lambda: (True, "a GPU that is none"))
    # With a limit it counts what is taken, and does not ask the host.
    monkeypatch.setattr(Gpu, "device", _native.CpuDevice(limit_bytes or 1 << 40))
    monkeypatch.setattr(Gpu, "opened", [])
    monkeypatch.setattr(Gpu, "others", {})
    monkeypatch.setattr(_native, "cuda_device", Gpu.open)
    monkeypatch.setattr(Runtime, "first_logger", None)
    monkeypatch.setattr(Engine, "made", [])
    monkeypatch.setattr(Engine, "capturable", True)
    monkeypatch.setattr(Engine, "compiled", [])
    monkeypatch.setattr(_native, "cuda_device_info", Gpu.describe)
    assert tensorrt.TensorRtRtxBackend().available()[0]
