"""What a backend is: it loads a bundle's networks as modules that map arrays to arrays."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sdengine.errors import BundleError, ConfigError

if TYPE_CHECKING:
    from sdengine.bundle.manifest import TensorEntry
    from sdengine.bundle.reader import Bundle

Array = NDArray[Any]
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
CPU_PRECISIONS = ("auto", "fp32", "bf16")
MAX_ELEMENTS = 1 << 31


@dataclass(frozen=True)
class TensorSpec:
    """Describe one input or output: its name, shape (ints, or symbols before loading), dtype."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class CompileSpec:
    """Say what a network is compiled for.

    Args:
        precision: "fp32", "bf16" or "fp16": what weights are stored in.
        sizes: width and height in pixels of each image size that requests may ask for.
        batch: images that one run makes.
        gpus: names of the GPUs that it shall run on, where the target wants them.
        workspace_bytes: the most that a run may take for scratch; None is the compiler's choice.
        optimization_level: how long the compiler searches, 0 to 5; None is its own default.
        kernels: "native" for the compiler's own, "triton" for ours where one computes the node, or
            "auto" for the faster of the two.
        timing_cache: where the compiler keeps what it measured; None is the user's cache.
        builder_flags: of TensorRT's builder, by name, beyond those that every build sets.
        progress: told what is going on, the steps done and all steps.
        cancel: once set, compiling ends with `Cancelled`.
    """

    precision: str
    sizes: tuple[tuple[int, int], ...]
    batch: int = 1
    gpus: tuple[str, ...] = ()
    workspace_bytes: int | None = None
    optimization_level: int | None = None
    kernels: str = "auto"
    timing_cache: Path | None = None
    builder_flags: tuple[str, ...] = ()
    progress: Callable[[str, int, int], None] | None = None
    cancel: threading.Event | None = None


@dataclass(frozen=True)
class Compiled:
    """What compiling a network made.

    Args:
        files: their names.
        peak_bytes: the most memory that processes beside this one held meanwhile.
        replaced: by operator, how many patterns of the graph became one node.
        options: what the manifest says about the network, beside what the build itself knows.
    """

    files: list[str]
    peak_bytes: int = 0
    replaced: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


class Module(Protocol):
    """One loaded network at fixed shapes.

    `run` reads its inputs where they lie when they have the input's dtype and C order: a caller
    that passes the same arrays again pays for no copy. The arrays it returns are the module's own
    and hold until its next run. Not thread-safe.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; every input must be given."""
        ...

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        ...


class Backend(Protocol):
    """A way to run bundles of one target."""

    name: str

    def available(self) -> tuple[bool, str]:
        """Say whether this machine can run the backend, and its version or what is lacking."""
        ...

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what the networks compute in: what "auto" means here, or what was asked for.

        Args:
            precision: one of PRECISIONS.
            stored: what the bundle's weights are stored in.

        Raises:
            ConfigError: the backend never computes in it.
            BackendUnavailableError: this machine does not compute in it.
        """
        ...

    def compile(self, network: Any, out_dir: Path, spec: CompileSpec) -> Compiled:
        """Write the network's files for this target below out_dir."""
        ...

    def load(
        self,
        bundle: Bundle,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        precision: str = "auto",
        threads: int | None = None,
    ) -> Module:
        """Load one network for the given input shapes.

        Args:
            bundle: an opened bundle of this backend's target.
            network: the network's name in the manifest.
            shapes: shape of every input, by name.
            precision: "auto", or what `resolve` returns.
            threads: CPU threads, or None for the runtime's own choice.
        """
        ...


def resolve_shapes(
    network: str,
    tensors: Sequence[TensorEntry] | Sequence[TensorSpec],
    sizes: Mapping[str, int],
) -> dict[str, tuple[int, ...]]:
    """Put numbers in the place of a network's symbolic dimensions.

    Args:
        network: the network's name, for messages.
        tensors: a network's inputs, as the manifest or a contract lists them.
        sizes: value of each symbol; `name/divisor` is rounded up, as strided convolutions do.

    Returns:
        Shape by input name.
    """

    def number(dimension: int | str) -> int:
        if isinstance(dimension, int):
            return dimension
        symbol, _, divisor = dimension.partition("/")
        if symbol not in sizes:
            raise BundleError(
                f"{network}: dimension {dimension!r} is unknown; known are {', '.join(sizes)}."
            )
        return -(-sizes[symbol] // int(divisor or 1))

    shapes = {tensor.name: tuple(number(size) for size in tensor.shape) for tensor in tensors}
    for name, shape in shapes.items():
        if math.prod(shape) > MAX_ELEMENTS:
            raise BundleError(f"{network}: input {name!r} would be {list(shape)}; too large.")
    return shapes


def symbol_sizes(
    tensors: Sequence[TensorEntry], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Read the value of each symbol off the shapes of a network's inputs."""
    sizes: dict[str, int] = {}
    for tensor in tensors:
        for dimension, size in zip(tensor.shape, shapes[tensor.name], strict=True):
            if isinstance(dimension, str):
                symbol, _, divisor = dimension.partition("/")
                sizes.setdefault(symbol, size * int(divisor or 1))
    return sizes


def require_tensors(
    network: str,
    specs: Sequence[TensorSpec],
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str | None = None,
) -> None:
    """Refuse a loaded network whose tensors are not what its manifest's architecture implies.

    Args:
        network: the network's name, for messages.
        specs: its inputs or outputs.
        shapes: the shape that each tensor named must have; others may exist.
        dtype: what they must hold, or None for anything.
    """
    found = {spec.name: spec for spec in specs}
    for name, shape in shapes.items():
        if name not in found:
            raise BundleError(f"{network}: there is no tensor {name!r}; found {', '.join(found)}.")
        spec = found[name]
        if spec.shape != shape or dtype not in (None, spec.dtype):
            raise BundleError(
                f"{network}: {name!r} is {spec.dtype} {list(spec.shape)}; expected "
                f"{dtype or spec.dtype} {list(shape)}."
            )


def require_cpu_precision(precision: str) -> None:
    """Refuse what no backend computes in on a CPU.

    Raises:
        ConfigError: it is fp16.
    """
    if precision not in CPU_PRECISIONS:
        raise ConfigError.for_field("precision", precision, f"{', '.join(CPU_PRECISIONS)} on a CPU")


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """Return NumPy's dtype for a tensor's dtype as manifests name it."""
    if dtype not in ("float32", "float16", "int64", "int32"):
        raise BundleError(f"an input of dtype {dtype} cannot be fed from NumPy.")
    return np.dtype(dtype)
