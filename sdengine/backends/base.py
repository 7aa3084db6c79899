"""Backend and session: a way to run bundles of a target, and one bundle that is opened with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from sdengine.adapters.weight_set import PRISTINE, WeightSet
from sdengine.backends.memory_budget import MemoryBudget
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import ConfigError

if TYPE_CHECKING:
    from sdengine.bundle.reader import Bundle

Array = NDArray[Any]
PRECISIONS = ("auto", "fp32", "bf16", "fp16", "int8")
VAE_TILES = ("auto", "always", "never")
CPU_PRECISIONS = ("auto", "fp32", "bf16")


class Module(Protocol):
    """One loaded network at fixed shapes.

    `run` reads its inputs where they lie when they have the input's dtype and C order: a caller
    that passes the same arrays again pays for no copy. The arrays it returns are the module's own
    and hold until its next run. Not thread-safe. What a module can do beside it is in
    `sdengine.backends.device_protocols`.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute the outputs by name; every input must be given."""
        ...

    def close(self) -> None:
        """Free the network's memory; a second call does nothing."""
        ...


@dataclass(frozen=True)
class SessionOptions:
    """Say how a bundle is run.

    Args:
        precision: one of PRECISIONS.
        threads: CPU threads, or None for the runtime's own choice.
        memory_bytes: the most memory that may be taken; None for what is free.
        low_memory: each network is freed once a request is done with it.
        device: number of the GPU, as CUDA counts them; None for the first, and without one.
        vae_tiles: one of VAE_TILES: whether the VAE's largest maps are computed in parts.
        vae_bands: where "auto" computes maps in bands from the start: network, width and height,
            and the most that its maps may take.
        split_guidance: two places for the halves of the U-Net's rows; see `sdengine.load`.
    """

    precision: str = "auto"
    threads: int | None = None
    memory_bytes: int | None = None
    low_memory: bool = False
    device: int | None = None
    vae_tiles: str = "auto"
    vae_bands: tuple[tuple[str, int, int, int], ...] = ()
    split_guidance: str | None = None


DEFAULTS = SessionOptions()


class Session(Protocol):
    """One open bundle on one backend: all that is kept between its networks and between requests.

    Args:
        precision: what the networks compute in: what "auto" came to, or what was asked for.
        budget: which image sizes fit into the memory that may be taken.
        max_chunks: the most chunks of a prompt that the networks take; None for any number.
        works_after_fork: its networks run on in a child process of fork.
    """

    precision: str
    budget: MemoryBudget
    max_chunks: int | None
    works_after_fork: bool

    def load(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet = PRISTINE,
    ) -> Module:
        """Load one network for the given input shapes.

        Modules of the same shapes with other weights may be used in turns: each computes with its
        own, whatever was loaded since.

        Args:
            network: the network's name in the manifest.
            shapes: shape of every input, by name.
            weights: what is merged into the bundle's own.

        Raises:
            BundleError: the network is missing or damaged, or was not built for the shapes.
            ConfigError: this backend computes with the bundle's own weights alone.
            AdapterError: a file of the weights was overwritten, or the sum is not finite; modules
                that were loaded before are as they were.
            OutOfMemoryError: the memory is not enough.
        """
        ...

    def close(self) -> None:
        """Free what the networks share; a second call does nothing. Modules are closed before."""
        ...


class Backend(Protocol):
    """A way to run bundles of one target. It knows no bundle: what belongs to one is a session."""

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

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session of a bundle; no network is loaded yet.

        Args:
            bundle: an open bundle of this backend's target.
            options: how it is run.

        Raises:
            ConfigError: an option is invalid, or memory_bytes is given for a backend whose
                networks take memory as they need it.
            BackendUnavailableError: this machine does not compute in the precision.
            BundleError: the manifest is not one of the backend's target.
            OutOfMemoryError: no image size of the bundle fits; nothing was allocated.
        """
        ...


def require_cpu_precision(precision: str) -> None:
    """Refuse what no backend computes in on a CPU.

    Raises:
        ConfigError: it is none of CPU_PRECISIONS.
    """
    if precision not in CPU_PRECISIONS:
        raise ConfigError.for_field("precision", precision, f"{', '.join(CPU_PRECISIONS)} on a CPU")


def require_pristine(backend: str, network: str, weights: WeightSet) -> None:
    """Refuse changed weights where a backend computes with those of the bundle alone.

    Raises:
        ConfigError: something is merged into the network's.
    """
    if weights.identity(network):
        raise ConfigError.for_field(
            "loras",
            f"one for {network}",
            f"none with backend {backend}",
            "It computes with compiled weights; bundles of target native take LoRAs.",
        )


def require_no_device(backend: str, device: int | None) -> None:
    """Refuse the number of a GPU where a backend does not choose among several.

    Raises:
        ConfigError: there is one.
    """
    if device is not None:
        raise ConfigError.for_field(
            "device",
            device,
            f"None with backend {backend}",
            "Backends tensorrt, tensorrt-rtx, torch-cuda and triton choose a GPU.",
        )


def require_no_split(backend: str, split_guidance: str | None) -> None:
    """Refuse two places where a backend runs a bundle at one.

    Raises:
        ConfigError: they are asked for.
    """
    if split_guidance is not None:
        raise ConfigError.for_field(
            "split_guidance",
            split_guidance,
            f"None with backend {backend}",
            "Backend native takes two groups of processors, tensorrt and tensorrt-rtx two GPUs.",
        )


def checked_device(device: object, names: Sequence[str]) -> int:
    """Return the number of a GPU that is there.

    Args:
        device: what was asked for.
        names: of those that are there, in their order.

    Raises:
        ConfigError: it is none; the message lists those that are.
    """
    if type(device) is int and 0 <= device < len(names):
        return device
    known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
    raise ConfigError.for_field(
        "device",
        device,
        known or "the number of a GPU, of which there is none",
        "CUDA_VISIBLE_DEVICES decides which are counted.",
    )
