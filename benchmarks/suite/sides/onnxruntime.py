"""ONNX Runtime as a side: its networks in our pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import (
    DEFAULTS,
    Array,
    Module,
    SessionOptions,
    require_pristine,
)
from sdengine.backends.memory_budget import unplanned_budget
from sdengine.benchmarks.suite.sides.engine import EngineSide
from sdengine.bundle.tensors import TensorSpec, numpy_dtype, resolve_shapes, symbol_sizes
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.backends.memory_budget import MemoryBudget
    from sdengine.bundle.reader import Bundle
    from sdengine.engine import Engine

_NAME = "onnxruntime"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeSide(EngineSide):
    """Networks as `sdengine export` writes them, run by ONNX Runtime at fixed shapes."""

    backend = _NAME

    def _import(self) -> None:
        import onnxruntime

        import sdengine.loading

        assert onnxruntime
        assert sdengine.loading

    def _open(self) -> Engine:
        from sdengine.bundle.reader import open_bundle
        from sdengine.engine import Engine

        folder = Path(self.place.work) / "onnx"
        if not (folder / "done").exists():
            _export(str(self.place.checkpoint), folder)
        backend = _Backend(folder, _PROVIDERS[self.setting.device])
        options = SessionOptions(self.precision, self.setting.threads)
        return Engine(open_bundle(str(self.place.bundle)), backend, options)


def _export(checkpoint: str, folder: Path) -> None:
    """Write the networks in a process of their own, whose memory is not the side's."""
    import subprocess

    from sdengine.benchmarks.modules import module_command

    command = module_command("sdengine", "export", checkpoint, "--output", folder)
    command += ["--precision", "fp32", "--no-controlnet", "--force"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        raise ConfigError(f"exporting to {folder}: {last}")
    (folder / "done").touch()


class _Backend:
    """A backend that is no part of the product: see `sdengine.backends.base.Backend`."""

    name = _NAME

    def __init__(self, folder: Path, provider: str) -> None:
        self._folder = folder
        self._provider = provider

    def available(self) -> tuple[bool, str]:
        import onnxruntime

        return True, f"ONNX Runtime {onnxruntime.__version__}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        return "fp32"

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> _Session:
        budget = unplanned_budget(self.name, options.memory_bytes)
        return _Session(bundle, self._folder, self._provider, options.threads, budget)


class _Session:
    """See `sdengine.backends.base.Session`."""

    max_chunks: int | None = None
    works_after_fork = False
    precision = "fp32"

    def __init__(
        self,
        bundle: Bundle,
        folder: Path,
        provider: str,
        threads: int | None,
        budget: MemoryBudget,
    ) -> None:
        self.budget = budget
        self._bundle = bundle
        self._folder = folder
        self._provider = provider
        self._threads = threads

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        """Load one network with its symbolic sides fixed."""
        import onnxruntime

        require_pristine(_NAME, network, weights)
        entry = self._bundle.network(network)
        sizes = symbol_sizes(entry.inputs, shapes)
        options = onnxruntime.SessionOptions()
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        for symbol, size in sizes.items():
            options.add_free_dimension_override_by_name(symbol, size)
        file = self._folder / f"{network}.onnx"
        session = onnxruntime.InferenceSession(os.fspath(file), options, [self._provider])
        outputs = resolve_shapes(network, entry.outputs, sizes)
        return _Module(
            session,
            tuple(TensorSpec(t.name, shapes[t.name], t.dtype) for t in entry.inputs),
            tuple(TensorSpec(t.name, outputs[t.name], t.dtype) for t in entry.outputs),
        )

    def close(self) -> None:
        """Keep nothing."""


class _Module:
    """See `sdengine.backends.base.Module`."""

    def __init__(
        self, session: Any, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        self._session = session
        self.inputs = inputs
        self.outputs = outputs

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        given = {
            spec.name: np.asarray(inputs[spec.name], numpy_dtype(spec.dtype))
            for spec in self.inputs
        }
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, given), strict=True))

    def close(self) -> None:
        self._session = None
