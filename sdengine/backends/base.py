"""What a backend is: it loads a bundle's networks as modules that map arrays to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from sdengine.bundle.tensors import TensorSpec
from sdengine.compilers.base import Compiled, CompileSpec
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.bundle.reader import Bundle

Array = NDArray[Any]
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
CPU_PRECISIONS = ("auto", "fp32", "bf16")


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


def require_cpu_precision(precision: str) -> None:
    """Refuse what no backend computes in on a CPU.

    Raises:
        ConfigError: it is fp16.
    """
    if precision not in CPU_PRECISIONS:
        raise ConfigError.for_field("precision", precision, f"{', '.join(CPU_PRECISIONS)} on a CPU")
