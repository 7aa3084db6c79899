"""The tensorrt and tensorrt-rtx backends: networks as engines of NVIDIA's, run on its GPUs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdengine import _native
from sdengine.backends.base import (
    Array,
    Compiled,
    CompileSpec,
    Module,
    TensorSpec,
    resolve_shapes,
    symbol_sizes,
)
from sdengine.bundle.reader import Bundle
from sdengine.errors import BackendUnavailableError, BundleError, ConfigError, DeviceError

if TYPE_CHECKING:
    from sdengine.export.export import ExportedNetwork

_NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "int64": np.int64}


class TensorRtModule:
    """One engine with a context at one image size.

    The engine computes a fixed number of rows: fewer are filled up, more take several runs. Arrays
    are fp32 on this side; engines of fp16 and bf16 get and give rounded values.
    """

    def __init__(
        self,
        name: str,
        context: Any,
        rows: int,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        engine_dtypes: Mapping[str, str],
    ) -> None:
        self.name = name
        self.inputs = inputs
        self.outputs = outputs
        self._context: Any = context
        self._rows = rows
        self._dtypes = dict(engine_dtypes)
        self._buffers: dict[str, _native.CudaBuffer] = {}
        self._host: dict[str, Array] = {}
        self._results = {
            spec.name: np.empty(tuple(map(int, spec.shape)), _NUMPY["float32"]) for spec in outputs
        }
        for spec in (*inputs, *outputs):
            shape = self._piece_shape(spec)
            host = np.zeros(shape, _NUMPY[self._dtypes[spec.name]])
            self._host[spec.name] = host
            self._buffers[spec.name] = _native.CudaBuffer(max(host.nbytes, 1))
            if spec in inputs and not context.set_input_shape(spec.name, shape):
                raise DeviceError(f"{name}: the engine refuses {spec.name} {list(shape)}.")
            if not context.set_tensor_address(spec.name, self._buffers[spec.name].address):
                raise DeviceError(f"{name}: the engine has no tensor {spec.name!r}.")

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; every input must be given at its shape."""
        if self._context is None:
            raise DeviceError(f"{self.name}: the network was closed.")
        total = int(self.inputs[0].shape[0])
        for first in range(0, total, self._rows):
            count = min(self._rows, total - first)
            for spec in self.inputs:
                host = self._host[spec.name]
                host[:count] = to_engine(inputs[spec.name][first : first + count], host.dtype)
                self._buffers[spec.name].upload(host)
            if not self._context.execute_async_v3(0):
                raise DeviceError(f"{self.name}: the engine did not run.")
            _native.cuda_synchronize()
            for spec in self.outputs:
                host = self._host[spec.name]
                self._buffers[spec.name].download(host)
                axis = _row_axis(spec)
                source = host[(slice(None),) * axis + (slice(count),)]
                target = self._results[spec.name]
                target[(slice(None),) * axis + (slice(first, first + count),)] = from_engine(source)
        return self._results

    def close(self) -> None:
        """Free the context and its buffers; a second call does nothing."""
        self._context = None
        self._buffers.clear()

    def _piece_shape(self, spec: TensorSpec) -> tuple[int, ...]:
        shape = [int(size) for size in spec.shape]
        shape[_row_axis(spec)] = self._rows
        return tuple(shape)


class TensorRtRtxBackend:
    """Run bundles of target `tensorrt-rtx` on GeForce RTX and professional RTX GPUs."""

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
    extra = "sdengine[tensorrt-rtx]"

    def __init__(self) -> None:
        self._engines: dict[Path, Any] = {}

    def available(self) -> tuple[bool, str]:
        """Say whether the module and a GPU are there, and the version or what is lacking."""
        if importlib.util.find_spec(self.module) is None:
            return False, f"{self.module} is not installed. Install it: pip install '{self.extra}'."
        usable, reason = _native.cuda_available()
        if not usable:
            return False, f"{reason}."
        return True, f"{self.module} {importlib.import_module(self.module).__version__}, {reason}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what the engines compute in, which was decided when they were built."""
        if precision not in ("auto", stored):
            raise ConfigError.for_field(
                "precision", precision, f"auto or {stored}, which the engines were built in"
            )
        return stored

    def compile(self, network: ExportedNetwork, out_dir: Path, spec: CompileSpec) -> Compiled:
        """Write the network's engine; see `sdengine.export.tensorrt_engine.compile_engine`."""
        from sdengine.export.tensorrt_engine import FLAVOURS, compile_engine

        if importlib.util.find_spec(self.module) is None:
            raise BackendUnavailableError(
                f"target {self.name} needs {self.module}, which is not installed. Install it: "
                f"pip install '{self.extra}'."
            )
        return compile_engine(network, out_dir, spec, FLAVOURS[self.name])

    def load(
        self,
        bundle: Bundle,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        precision: str = "auto",
        threads: int | None = None,
    ) -> Module:
        """Open one network's engine at the profile of an image size; see `Backend.load`."""
        self.resolve(precision, bundle.manifest.precision)
        trt = importlib.import_module(self.module)
        entry = bundle.network(network)
        engine = self._engine(trt, bundle.path(entry.files[0]))
        context = engine.create_execution_context()
        rows, profile = _find_profile(engine, network, shapes)
        context.set_optimization_profile_async(profile, 0)
        inputs = tuple(TensorSpec(t.name, shapes[t.name], _seen(t.dtype)) for t in entry.inputs)
        found = resolve_shapes(network, entry.outputs, symbol_sizes(entry.inputs, shapes))
        outputs = tuple(TensorSpec(t.name, found[t.name], _seen(t.dtype)) for t in entry.outputs)
        dtypes = {t.name: t.dtype for t in (*entry.inputs, *entry.outputs)}
        return TensorRtModule(network, context, rows, inputs, outputs, dtypes)

    def _engine(self, trt: Any, path: Path) -> Any:
        """Return the engine of a file; its weights are on the GPU once, whatever its sizes."""
        if path not in self._engines:
            engine = trt.Runtime(self._logger(trt)).deserialize_cuda_engine(path.read_bytes())
            if engine is None:
                raise DeviceError(
                    f"{path}: {self.module} {trt.__version__} cannot load this engine on this "
                    "GPU. Build the bundle again: sdengine build CHECKPOINT -o BUNDLE --gpu NAME."
                )
            self._engines[path] = engine
        return self._engines[path]

    def _logger(self, trt: Any) -> Any:
        return trt.Logger(trt.Logger.ERROR)


class TensorRtBackend(TensorRtRtxBackend):
    """Run bundles of target `tensorrt`, built for one GPU, on such a GPU."""

    name = "tensorrt"
    module = "tensorrt"
    extra = "sdengine[tensorrt]"


def to_engine(values: Array, dtype: np.dtype[Any]) -> Array:
    """Round fp32 to fp16, or to bf16 as its upper 16 bits; other types stay as they are.

    Ties go to the even number, as the hardware's conversions do.
    """
    if dtype != np.uint16:
        with np.errstate(over="ignore"):  # the run time finds what is not finite
            return values.astype(dtype, copy=False)
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # NaN must stay one, whichever bits it has.
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def from_engine(values: Array) -> Array:
    """Return fp32 from fp32, fp16 or the upper 16 bits of bf16."""
    if values.dtype != np.uint16:
        return values.astype(np.float32, copy=False)
    return (values.astype(np.uint32) << 16).view(np.float32)


def _find_profile(
    engine: Any, network: str, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[int, int]:
    """Return rows and number of the profile that shapes fit into, whatever their rows."""
    for index in range(engine.num_optimization_profiles):
        rows = 0
        for name, shape in shapes.items():
            least, _, most = engine.get_tensor_profile_shape(name, index)
            pairs = zip(tuple(least)[1:], shape[1:], tuple(most)[1:], strict=True)
            if not all(low <= size <= high for low, size, high in pairs):
                break
            rows = int(most[0])
        else:
            return rows, index
    raise BundleError(f"{network}: the engine has no profile for {dict(shapes)}.")


def _row_axis(spec: TensorSpec) -> int:
    """Return which axis counts rows: hidden states have their layer before it."""
    return 1 if spec.name in ("hidden_states", "normed_hidden_states") else 0


def _seen(dtype: str) -> str:
    return "int64" if dtype == "int64" else "float32"
