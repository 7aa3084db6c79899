"""Device protocols: what a backend's modules and sessions may do beyond running given inputs."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeGuard, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sdengine.adapters.weight_set import WeightSet
from sdengine.backends.base import Module, Session
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource

Array = NDArray[np.float32]


@dataclass(frozen=True)
class TrajectoryKind:
    """What a device has to be able to do for a trajectory.

    Args:
        batch: images.
        copies: rows an image: 2 with guidance, else 1.
        channels: of the latents.
        evaluations, registers: of the sampler program.
    """

    batch: int
    copies: int
    channels: int
    evaluations: int
    registers: int


class DeviceRun(Protocol):
    """One trajectory on a device. Others may use the device between two calls."""

    def use(self, inputs: Mapping[str, Array]) -> None:
        """Bring the U-Net's inputs to the device, other than sample and timestep."""
        ...

    def advance(self, count: int, noise: NoiseSource) -> int:
        """Queue the next evaluations, or run them.

        Returns:
            Nanoseconds of this call that were not the network's, as far as that can be told.
        """
        ...

    def steps_done(self) -> int:
        """Tell how many evaluations have run; from any thread, and without waiting."""
        ...

    def latents(self) -> Array:
        """Wait, and return [B,C,h,w] fp32; raises NonFiniteError naming the evaluation."""
        ...

    def hand_over(self) -> Array:
        """Wait, end the run, and return its registers [R,B,C,h,w] fp32 for another to go on with.

        Raises:
            NonFiniteError: an evaluation gave NaN or infinity; the message names it.
        """
        ...

    def cancel(self) -> None:
        """End `advance`, which another thread is in, before its next evaluation."""
        ...


@runtime_checkable
class RunsTrajectories(Protocol):
    """A U-Net's module that runs sampler steps itself."""

    def refuses(self, kind: TrajectoryKind) -> str:
        """Say why it cannot run a trajectory; nothing where it can."""
        ...

    def is_ready(self, kind: TrajectoryKind) -> bool:
        """Say whether it was prepared."""
        ...

    def prepare(self, kind: TrajectoryKind) -> None:
        """Do what is done once for all trajectories of a kind."""
        ...

    def begin(
        self,
        kind: TrajectoryKind,
        program: SamplerProgram,
        guidance_scale: float,
        registers: Array,
        first: int = 0,
    ) -> DeviceRun:
        """Bring a program and registers [R,B,C,h,w] to the device, once it is ready.

        `use` follows. `first` is the evaluation that the run begins with.
        """
        ...


@runtime_checkable
class RunsAtOnce(Protocol):
    """One of `RunsTrajectories` that queues nothing: what `advance` was asked for has run."""

    def runs_at_once(self) -> bool:
        """Say so."""
        ...


@runtime_checkable
class DecodesPixels(Protocol):
    """A decoder's module whose device scales latents and makes pixels itself."""

    def decode(self, latents: NDArray[np.float32], scale: float) -> tuple[NDArray[np.uint8], int]:
        """Decode images one after the other, and wait once.

        Args:
            latents: [B,C,h,w] fp32; those that a trajectory ended with may lie on the device.
            scale: what the latents are multiplied by.

        Returns:
            Pixels [B,H,W,3], and nanoseconds of this call that were not the network's, as far as
            that can be told.

        Raises:
            NonFiniteError: the decoder gave NaN or infinity.
        """
        ...


@runtime_checkable
class RunsInBands(Protocol):
    """A module that computes its largest maps band by band, which rounds differently."""

    def band_bytes(self) -> int:
        """Return the most that its maps take, which tells how many of them are in bands."""
        ...


@runtime_checkable
class SharesItsRest(Protocol):
    """A module with merged weights, all else of which modules with other weights share."""

    def rest(self) -> object:
        """Return all else, for whoever lets the module go before the other one is loaded.

        The module itself goes on as it was. None where it shares nothing.
        """
        ...


@runtime_checkable
class FillsZeros(Protocol):
    """A module that takes inputs to be zero which are not given."""

    def zero_unless_given(self) -> frozenset[str]:
        """Name them."""
        ...


@runtime_checkable
class WrapsEdges(Protocol):
    """A session whose convolutions can read what lies at a map's other end in the place of zeros.

    What such a network computes from inputs that are shifted around by whole cells of its coarsest
    level is shifted, too.
    """

    def load_wrapping(
        self,
        network: str,
        shapes: Mapping[str, tuple[int, ...]],
        weights: WeightSet,
        axes: str,
    ) -> Module:
        """Load a network as `Session.load` does, with edges that meet along "x", "y" or "xy"."""
        ...


def wraps_edges(session: Session) -> TypeGuard[WrapsEdges]:
    """Say whether a session is one of `WrapsEdges`."""
    return _has(type(session), WrapsEdges)


def runs_trajectories(module: Module) -> TypeGuard[RunsTrajectories]:
    """Say whether a module is one of `RunsTrajectories`."""
    return _has(type(module), RunsTrajectories)


def runs_at_once(module: RunsTrajectories) -> bool:
    """Say whether a module is one of `RunsAtOnce`."""
    return _has(type(module), RunsAtOnce)


def decodes_pixels(module: Module) -> TypeGuard[DecodesPixels]:
    """Say whether a module is one of `DecodesPixels`."""
    return _has(type(module), DecodesPixels)


def runs_in_bands(module: Module) -> TypeGuard[RunsInBands]:
    """Say whether a module is one of `RunsInBands`."""
    return _has(type(module), RunsInBands)


def rest_of(module: Module) -> object:
    """Return what others share with a module whose weights are merged; see `SharesItsRest`."""
    return cast("SharesItsRest", module).rest() if _has(type(module), SharesItsRest) else None


def inputs_zero_unless_given(module: Module) -> frozenset[str]:
    """Name the inputs that a module's `run` may lack."""
    if _has(type(module), FillsZeros):
        return cast("FillsZeros", module).zero_unless_given()
    return frozenset()


@functools.cache
def _has(kind: type, protocol: type) -> bool:
    return issubclass(kind, protocol)  # which looks every method up, for longer than a step takes
