"""Trajectory: a sampler program's evaluations of the U-Net, from noise to clean latents."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.base import Module
from sdengine.backends.device_protocols import RunsTrajectories, TrajectoryKind
from sdengine.errors import NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.device_trajectory import Seen, choose_device, run_on_device
from sdengine.pipeline.guidance import guide
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.turns import check_cancelled
from sdengine.pipeline.unet_inputs import UNetInputs
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource
from sdengine.samplers.prediction import clean_from_scaled

_log = logging.getLogger(__name__)
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the U-Net.

    Args:
        index: 0 to K-1.
        latents: [B,C,h,w] fp32 after it; read-only, overwritten by the next one. None where only
            steps are seen and a device runs them, but for the last one.
        clean: the same shape, the estimate of the clean latents; None unless it was asked for.
    """

    index: int
    latents: Array | None
    clean: Array | None


class Trajectory:
    """Run one sampler program for some images of a request.

    Args:
        unet: loaded for as many rows as the plans have.
        inputs: its buffers.
        program: the sampler's numbers.
        row_plans: of every step, equal in the number of rows.
        guidance_scale, guidance_rescale: as in `sdengine.Request`.
        cancel: setting it ends the trajectory before its next evaluation.
    """

    def __init__(
        self,
        unet: Module,
        inputs: UNetInputs,
        program: SamplerProgram,
        row_plans: Sequence[RowPlan],
        guidance_scale: float,
        guidance_rescale: float = 0.0,
        cancel: threading.Event | None = None,
    ) -> None:
        self.unet = unet
        self.inputs = inputs
        self.program = program
        self.row_plans = row_plans
        self.guidance_scale = guidance_scale
        self.guidance_rescale = guidance_rescale
        self.cancel = cancel

    def run(
        self,
        noise: NoiseSource,
        clock: StageClock,
        clean_every: int = 0,
        seen: Seen = "latents",
    ) -> Iterator[Evaluation]:
        """Evaluate the U-Net step by step, on its device where that runs the steps itself.

        Args:
            noise: draws for these images.
            clock: where time is counted.
            clean_every: estimate the clean latents at every n-th step; 0 for never.
            seen: what somebody looks at of every evaluation; with "nothing" the last one may be all
                there is.

        Raises:
            NonFiniteError: a step gave NaN or infinity.
            Cancelled: the caller cancelled.
        """
        kind = self._kind()
        device, reason = choose_device(
            self.unet, kind, self.row_plans, self.guidance_rescale, clean_every
        )
        if device is None:
            _log.debug("the host runs the sampler's steps: %s", reason)
            yield from self._run_on_host(noise, clock, clean_every)
        else:
            yield from self._run_on_device(device, kind, noise, clock, seen)

    def _kind(self) -> TrajectoryKind:
        return TrajectoryKind(
            batch=self._num_images,
            copies=2 if self.row_plans[0].has_negative else 1,
            channels=self.inputs.latents_shape[1],
            evaluations=len(self.program.t),
            registers=self.program.num_registers,
        )

    @property
    def _num_images(self) -> int:
        return self.row_plans[0].num_images

    def _run_on_device(
        self,
        device: RunsTrajectories,
        kind: TrajectoryKind,
        noise: NoiseSource,
        clock: StageClock,
        seen: Seen,
    ) -> Iterator[Evaluation]:
        program = self.program
        registers, _ = self._start(noise)
        if not device.is_ready(kind):
            with clock.stage("load"):
                device.prepare(kind)
        with clock.stage("unet", calls=0):
            run = device.begin(kind, program, self.guidance_scale, registers[0])
        found = run_on_device(
            run, program, self.row_plans, self.inputs, noise, clock, seen, self.cancel
        )
        for k, latents in found:
            yield Evaluation(k, latents, None)

    def _run_on_host(
        self, noise: NoiseSource, clock: StageClock, clean_every: int
    ) -> Iterator[Evaluation]:
        program, inputs = self.program, self.inputs
        registers, step_noise = self._start(noise)
        latents = registers[0].view()
        latents.flags.writeable = False
        for k, numbers in enumerate(program.evaluations):
            check_cancelled(self.cancel)
            plan = self.row_plans[numbers.step]
            inputs.use(plan)
            self._scale(registers[0], numbers.c_in, inputs.sample)
            inputs.timestep.fill(numbers.t)
            if numbers.needs_noise:
                noise.step(step_noise)
            with clock.stage("unet"):
                noise_pred = self.unet.run(inputs.arrays)["noise_pred"]
            wants_clean = clean_every > 0 and (numbers.step + 1) % clean_every == 0
            if wants_clean or not plan.is_plain or self.guidance_rescale > 0:
                noise_pred = guide(noise_pred, plan, self.guidance_scale, self.guidance_rescale)
            clean = None
            if wants_clean:
                scaled = inputs.sample[: self._num_images]
                clean = self._clean(k, scaled, noise_pred)
            finite = _native.guided_step(
                registers,
                noise_pred,
                self.guidance_scale,
                numbers.A,
                numbers.b,
                numbers.d,
                step_noise if numbers.needs_noise else None,
            )
            if not finite:
                raise NonFiniteError.at(
                    "unet", f"evaluation {k + 1} of {len(program.t)} gave NaN or infinity"
                )
            yield Evaluation(k, latents, clean)

    def _start(self, noise: NoiseSource) -> tuple[Array, Array]:
        """Return the registers at their start, and a buffer for each step's noise."""
        shape = (self._num_images, *self.inputs.latents_shape[1:])
        registers = np.zeros((self.program.num_registers, *shape), dtype=np.float32)
        np.multiply(noise.initial(), np.float32(self.program.init_scale), out=registers[0])
        step_noise = np.empty(shape, dtype=np.float32)
        if self.program.init_noise:
            noise.step(step_noise)
            registers[0] += np.float32(self.program.init_noise) * step_noise
        return registers, step_noise

    def _scale(self, latents: Array, factor: float, sample: Array) -> None:
        """Write the scaled latents to every block of rows."""
        count = self._num_images
        _native.scale_duplicate(latents, factor, sample[: 2 * count])
        for first in range(2 * count, len(sample), count):  # of prompts joined by AND
            sample[first : first + count] = sample[:count]

    def _clean(self, k: int, scaled: Array, guided: Array) -> Array:
        sigma = float(self.program.sigma[k])
        alpha = 1 / np.sqrt(sigma**2 + 1)
        p, q = clean_from_scaled(self.program.prediction_type, alpha, sigma * alpha)
        clean: Array = np.float32(p) * scaled + np.float32(q) * guided
        return clean
