"""Trajectories on a device that runs the sampler's steps itself, without the host between them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from sdengine.backends.base import Module
from sdengine.errors import NonFiniteError
from sdengine.guidance import RowPlan
from sdengine.networks import StageClock
from sdengine.noise import NoiseSource
from sdengine.samplers import SamplerProgram
from sdengine.turns import check_cancelled
from sdengine.unet_inputs import UNetInputs

FP32_HINT = "Try precision fp32; if it stays, the checkpoint is damaged."
_POLL_SECONDS = 0.02
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

    def advance(self, count: int, noise: NoiseSource) -> None:
        """Queue the next evaluations."""
        ...

    def latents(self) -> Array:
        """Wait, and return [B,C,h,w] fp32; raises NonFiniteError naming the evaluation."""
        ...

    def cancel(self) -> None:
        """End `advance`, which another thread is in, before its next evaluation."""
        ...


@runtime_checkable
class RunsTrajectories(Protocol):
    """A U-Net's module whose device runs sampler steps itself."""

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
        self, kind: TrajectoryKind, program: SamplerProgram, guidance_scale: float, initial: Array
    ) -> DeviceRun:
        """Bring a program and r[0] to the device, once it is ready; `use` follows."""
        ...


def choose_device(
    unet: Module,
    kind: TrajectoryKind,
    row_plans: Sequence[RowPlan],
    guidance_rescale: float,
    clean_every: int,
) -> tuple[RunsTrajectories | None, str]:
    """Decide where a trajectory's steps run.

    Args:
        unet: the loaded U-Net.
        kind: what the trajectory needs.
        row_plans: of every step.
        guidance_rescale, clean_every: of the request; more than 0 needs each prediction on the
            host.

    Returns:
        The U-Net as what runs them, or None and why the host does.
    """
    if not isinstance(unet, RunsTrajectories):
        return None, "the backend's networks read and write the host's memory"
    if clean_every > 0:
        return None, "previews are made from each prediction"
    if guidance_rescale > 0:
        return None, "guidance_rescale looks at each prediction as a whole"
    if not all(plan.is_plain for plan in row_plans):
        return None, "prompts joined by AND weigh more than two rows an image"
    refusal = unet.refuses(kind)
    return (None, refusal) if refusal else (unet, "")


def run_on_device(
    run: DeviceRun,
    program: SamplerProgram,
    row_plans: Sequence[RowPlan],
    inputs: UNetInputs,
    noise: NoiseSource,
    clock: StageClock,
    watched: bool,
    cancel: threading.Event | None,
) -> Iterator[tuple[int, Array]]:
    """Run a trajectory that was begun.

    Args:
        run: of the device.
        program: the sampler's numbers.
        row_plans: of every step.
        inputs: the U-Net's, on the host.
        noise: draws for the images.
        clock: where time is counted.
        watched: somebody looks at every evaluation.
        cancel: setting it ends the trajectory before its next evaluation.

    Yields:
        Number and latents of each evaluation; of the last one only, unless watched.

    Raises:
        NonFiniteError: an evaluation gave NaN or infinity.
        Cancelled: the caller cancelled.
    """
    total = len(program.t)
    used: RowPlan | None = None
    for first, end in segments([row_plans[int(step)] for step in program.step], watched):
        check_cancelled(cancel)
        plan = row_plans[int(program.step[first])]
        with clock.stage("unet", calls=end - first):
            if plan is not used:
                inputs.use(plan)
                run.use(inputs.arrays)
                used = plan
            # One evaluation ends soon enough by itself.
            with _cancelling(cancel if end - first > 1 else None, run):
                run.advance(end - first, noise)
            latents = _latents(run) if watched or end == total else None
        if latents is not None:
            yield end - 1, latents


def segments(plans: Sequence[RowPlan], watched: bool) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the evaluations between which the host has nothing to do."""
    first = 0
    for k in range(1, len(plans) + 1):
        if watched or k == len(plans) or plans[k] is not plans[first]:
            yield first, k
            first = k


def _latents(run: DeviceRun) -> Array:
    try:
        return run.latents()
    except NonFiniteError as error:
        raise NonFiniteError(f"{error}. {FP32_HINT}") from None


@contextmanager
def _cancelling(cancel: threading.Event | None, run: DeviceRun) -> Iterator[None]:
    """Pass on what the caller sets while the block is in native code."""
    if cancel is None:
        yield
        return
    guard, done = threading.Lock(), threading.Event()

    def watch() -> None:
        while not done.is_set():
            if cancel.wait(_POLL_SECONDS):
                with guard:
                    if not done.is_set():
                        run.cancel()
                return

    threading.Thread(target=watch, name="sdengine-cancel", daemon=True).start()
    try:
        yield
    finally:
        with guard:
            done.set()
