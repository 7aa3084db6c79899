"""Stands for TensorRT's run time: engines are descriptions of ONNX files, computed by onnxruntime.

It refuses what TensorRT refuses: shapes outside the chosen profile, tensors without an address,
names that the engine does not have.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest

from sdengine import _native
from sdengine.backends import tensorrt
from sdengine.backends.base import Compiled, CompileSpec
from sdengine.export import tensorrt_engine
from sdengine.export.export import ExportedNetwork


class HostBuffer:
    """Stands for memory of a GPU."""

    live: ClassVar[dict[int, HostBuffer]] = {}

    def __init__(self, size_bytes: int) -> None:
        self.address = 4096 * (len(self.live) + 1)
        self.content = bytearray(size_bytes)
        self.live[self.address] = self

    def upload(self, array: np.ndarray[Any, Any]) -> None:
        assert array.nbytes <= len(self.content) and array.flags.c_contiguous
        self.content[: array.nbytes] = array.tobytes()

    def download(self, array: np.ndarray[Any, Any]) -> None:
        assert array.nbytes <= len(self.content) and array.flags.c_contiguous
        array[...] = np.frombuffer(self.content, array.dtype, array.size).reshape(array.shape)


class Context:
    """Runs an engine at one profile."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.profile: dict[str, list[list[int]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = self.engine.profiles[index]
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = self.profile[name]
        self.shapes[name] = tuple(shape)
        return all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.names and address in HostBuffer.live

    def execute_async_v3(self, stream: int) -> bool:
        session = self.engine.session
        feeds = {}
        for port in session.get_inputs():
            dtype = np.dtype({"tensor(float16)": "f2", "tensor(int64)": "i8"}.get(port.type, "f4"))
            shape = self.shapes[port.name]
            content = HostBuffer.live[self.addresses[port.name]].content
            feeds[port.name] = np.frombuffer(content, dtype, int(np.prod(shape))).reshape(shape)
        names = [port.name for port in session.get_outputs()]
        for name, value in zip(names, session.run(names, feeds), strict=True):
            HostBuffer.live[self.addresses[name]].upload(np.ascontiguousarray(value))
        self.engine.runs += 1
        return True


class Engine:
    """Reads a description that `compile_fake` wrote."""

    made: ClassVar[list[Engine]] = []

    def __init__(self, content: bytes) -> None:
        described = json.loads(content)
        self.profiles = described["profiles"]
        self.num_optimization_profiles = len(self.profiles)
        self.session = onnxruntime.InferenceSession(described["onnx"])
        ports = (*self.session.get_inputs(), *self.session.get_outputs())
        self.names = {port.name for port in ports}
        self.runs = 0
        self.made.append(self)

    def get_tensor_profile_shape(self, name: str, index: int) -> list[list[int]]:
        return list(self.profiles[index][name])

    def create_execution_context(self) -> Context:
        return Context(self)


class Runtime:
    """Makes engines of files."""

    def __init__(self, logger: object) -> None:
        pass

    def deserialize_cuda_engine(self, content: bytes) -> Engine | None:
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
    profiles = tensorrt_engine.make_profiles(network, spec)
    path = out_dir / f"{network.name}.engine"
    path.write_text(json.dumps({"onnx": str(network.onnx_path), "profiles": profiles}))
    return Compiled([path.name])


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-ins into the places of TensorRT-RTX and of the GPU."""
    module = ModuleType("tensorrt_rtx")
    module.__dict__.update(__version__="0.0", Runtime=Runtime, Logger=Logger)
    module.__spec__ = sys.modules["json"].__spec__
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", module)
    monkeypatch.setattr(tensorrt_engine, "compile_engine", compile_fake)
    monkeypatch.setattr(_native, "cuda_available", lambda: (True, "a GPU that is none"))
    monkeypatch.setattr(_native, "CudaBuffer", HostBuffer)
    monkeypatch.setattr(_native, "cuda_synchronize", lambda: None)
    monkeypatch.setattr(Engine, "made", [])
    assert tensorrt.TensorRtRtxBackend().available()[0]
