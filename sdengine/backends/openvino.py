"""The openvino backend: networks as OpenVINO IR, run on the CPU without torch."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sdengine.adapters.changes import merged
from sdengine.adapters.own_weights import own_weights
from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.base import (
    DEFAULTS,
    Array,
    Module,
    Session,
    SessionOptions,
    require_cpu_precision,
    require_no_device,
    require_no_split,
)
from sdengine.backends.memory_budget import MemoryBudget, unplanned_budget
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec, numpy_dtype
from sdengine.errors import (
    BackendUnavailableError,
    BundleError,
    ConfigError,
    DeviceError,
    OutOfMemoryError,
)
from sdengine.machine import usable_processors

_log = logging.getLogger(__name__)
_PRECISION_HINT = "INFERENCE_PRECISION_HINT"
_ELEMENT_TYPES = {"f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32"}


class OpenVinoModule:
    """One compiled network at static shapes.

    An input array of the right dtype and order is bound where it lies: passing the same array
    again costs nothing. Outputs lie in the request's own tensors, which the next run overwrites.
    """

    def __init__(self, name: str, compiled: Any) -> None:
        self.name = name
        self._request = compiled.create_infer_request()
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._bound: dict[str, Array] = {}

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; every input must be given at its static shape."""
        self._infer(inputs)
        return {
            spec.name: self._request.get_output_tensor(index).data
            for index, spec in enumerate(self.outputs)
        }

    def run_timed(self, inputs: Mapping[str, Array]) -> dict[str, float]:
        """Run, and return the seconds that each layer took, by its name in the runtime model.

        The network was compiled to be timed; layers that did not run are left out.
        """
        self._infer(inputs)
        return {
            layer.node_name: layer.real_time.total_seconds()
            for layer in self._request.get_profiling_info()
            if layer.status == layer.Status.EXECUTED
        }

    def _infer(self, inputs: Mapping[str, Array]) -> None:
        if self._request is None:
            raise DeviceError(f"{self.name}: the network was closed.")
        for spec in self.inputs:
            self._bind(spec, inputs)
        try:
            self._request.infer()
        except MemoryError:
            raise OutOfMemoryError(f"{self.name}: memory ran out while computing.") from None
        except RuntimeError as error:
            raise DeviceError(f"{self.name}: OpenVINO failed: {_first_line(error)}") from error

    def _bind(self, spec: TensorSpec, inputs: Mapping[str, Array]) -> None:
        import openvino

        try:
            array = inputs[spec.name]
        except KeyError:
            raise ConfigError(f"{self.name}: input {spec.name!r} is not given.") from None
        if array is self._bound.get(spec.name):
            return
        if array.shape != spec.shape:
            raise ConfigError(
                f"{self.name}: input {spec.name!r} is {list(array.shape)}; this network was loaded "
                f"for {list(spec.shape)}."
            )
        array = np.asarray(array, dtype=numpy_dtype(spec.dtype), order="C")
        try:
            tensor = openvino.Tensor(array, shared_memory=True)
            self._request.set_tensor(spec.name, tensor)
        except RuntimeError as error:
            raise DeviceError(
                f"{self.name}: input {spec.name!r} cannot be bound: {_first_line(error)}"
            ) from error
        self._bound[spec.name] = array  # keeps the memory that the tensor points to

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        self._bound = {}
        self._request = None


class OpenVinoSession:
    """One bundle on OpenVINO; see `sdengine.backends.base.Session`. Networks share nothing."""

    max_chunks: int | None = None
    works_after_fork: bool = False  # OpenVINO's threads stay in the parent

    def __init__(
        self, bundle: Bundle, precision: str, threads: int | None, budget: MemoryBudget
    ) -> None:
        self.precision = precision
        self.budget = budget
        self._bundle = bundle
        self._threads = threads

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        """Read one network's IR, fix its shapes and compile it."""
        return OpenVinoModule(network, self.compile(network, shapes, weights)[1])

    def compile(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
        *,
        timed: bool = False,
    ) -> tuple[Any, Any]:
        """Return a network as `openvino.Model` at its shapes, and compiled.

        Args:
            network, shapes, weights: as of `load`, whose errors are raised.
            timed: each layer's time is measured when it runs.
        """
        xml, file = _ir_files(self._bundle, network)
        core = _core()
        config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            _PRECISION_HINT: "bf16" if self.precision == "bf16" else "f32",
        }
        if self._threads is not None:
            config["INFERENCE_NUM_THREADS"] = self._threads
        if timed:
            config["PERF_COUNT"] = "YES"
        try:
            model = core.read_model(str(xml), str(file))
            if weights.identity(network):
                weights.require_unchanged()  # reading a mapped file that was cut off is fatal
                _merge(model, network, weights, own_weights(self._bundle, network))
                weights.require_unchanged()
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            if _bf16_attention_is_wrong(model) and config[_PRECISION_HINT] == "bf16":
                _log.warning(
                    "%s computes in fp32 for %s: OpenVINO's bf16 attention is wrong there",
                    network,
                    _shown(shapes),
                )
                config[_PRECISION_HINT] = "f32"
            return model, core.compile_model(model, "CPU", config)
        except MemoryError:
            raise OutOfMemoryError(f"{network}: memory ran out while loading {xml}.") from None
        except (RuntimeError, TypeError, ValueError) as error:
            raise BundleError(
                f"{network}: OpenVINO cannot load {xml} for {_shown(shapes)}: {_first_line(error)}"
            ) from error

    def close(self) -> None:
        """Do nothing: nothing is left once the modules are closed."""


class OpenVinoBackend:
    """Run bundles of target `openvino` on the CPU."""

    name = "openvino"

    def available(self) -> tuple[bool, str]:
        """Say whether OpenVINO is installed, and its version or what is lacking."""
        try:
            import openvino
        except ImportError as error:
            return False, f"{error}. Install it: pip install openvino."
        return True, f"OpenVINO {openvino.__version__}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what `auto` means here: bf16 where the processor computes in it, else fp32."""
        require_cpu_precision(precision)
        if precision == "fp32":
            return precision
        has_bf16 = "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bf16" and not has_bf16:
            raise BackendUnavailableError(
                "precision bf16: this processor does not compute in bf16. Use fp32 or auto."
            )
        return "bf16" if has_bf16 else "fp32"

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session; see `Backend.open`. OpenVINO takes memory as it needs it."""
        require_no_device(self.name, options.device)
        require_no_split(self.name, options.split_guidance)
        budget = unplanned_budget(self.name, options.memory_bytes)
        # Its own choice knows no quota.
        threads = options.threads or usable_processors().threads_by_quota
        return OpenVinoSession(bundle, self.resolve(options.precision), threads, budget)


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()


def _merge(model: Any, network: str, weights: WeightSet, own: Mapping[str, Array]) -> None:
    """Replace the weights that are changed, in fp32; compiling folds what follows from them."""
    import openvino.opset13 as ops

    changes = weights.changes(network)
    changed = set(changes)
    for node in model.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() != "Constant" or name not in changed:
            continue
        constant = ops.constant(merged(own[name], changes[name]), shared_memory=False)
        changed.remove(name)
        for reader in node.output(0).get_target_inputs():
            convert = reader.get_node()
            is_stored = convert.get_type_name() == "Convert"  # of what fp16 or bf16 holds
            places = convert.output(0).get_target_inputs() if is_stored else [reader]
            for place in places:
                place.replace_source_output(constant.output(0))
    if changed:
        raise ConfigError(
            f"loras: {network}: {min(changed)!r} is changed, which a bundle of target openvino "
            "does not hold by that name: it takes changes of matrices and kernels. Bundles of "
            "target native take all."
        )


def _bf16_attention_is_wrong(model: Any) -> bool:
    """Tell whether an attention has as many queries as heads, more than one.

    OpenVINO 2026.4.1 then errs by 32 to 56 % in bf16, against 0.6 % at other sizes, and nothing
    but a comparison with fp32 shows it.
    """
    for node in model.get_ops():
        if node.get_type_name() == "ScaledDotProductAttention":
            _, heads, queries, _ = node.get_output_shape(0)
            if heads == queries > 1:
                return True
    return False


def _ir_files(bundle: Bundle, network: str) -> tuple[Path, Path]:
    files = bundle.network(network).files
    xml = [path for path in files if path.endswith(".xml")]
    weights = [path for path in files if path.endswith(".bin")]
    if len(xml) != 1 or len(weights) != 1:
        raise BundleError(f"{network}: expected one .xml and one .bin file, found {files}.")
    return bundle.path(xml[0]), bundle.path(weights[0])


def _spec(port: Any) -> TensorSpec:
    dtype = port.get_element_type().get_type_name()
    shape = tuple(int(size) for size in port.get_partial_shape().to_shape())
    return TensorSpec(port.get_any_name(), shape, _ELEMENT_TYPES.get(dtype, dtype))


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    shown = [f"{name} {list(shape)}" for name, shape in list(shapes.items())[:4]]
    return ", ".join(shown) + (", ..." if len(shapes) > 4 else "")


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip()[:300] if lines else type(error).__name__
