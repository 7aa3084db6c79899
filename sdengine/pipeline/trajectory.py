"""The trajectory: a sampler program's evaluations of the U-Net, from noise to clean latents."""

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
from sdengine.bundle.manifest import Architecture
from sdengine.errors import FP32_HINT, NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.device_trajectory import choose_device, run_on_device
from sdengine.pipeline.guidance import RowPlan, guide
from sdengine.pipeline.latents import latents_shape
from sdengine.pipeline.loaded_networks import Networks
from sdengine.pipeline.turns import check_cancelled
from sdengine.pipeline.unet_inputs import UNetInputs
from sdengine.prompt.conditioning import Conditioning
from sdengine.prompt.plan import PromptPlan
from sdengine.request.request import Request
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
        latents: [B,C,h,w] fp32 after it; read-only, overwritten by the next one.
        clean: the same shape, the estimate of the clean latents; None unless it was asked for.
    """

    index: int
    latents: Array
    clean: Array | None


class Trajectory:
    """Run one sampler program for some images of a request.

    Args:
        request: what was asked.
        program: the sampler's numbers.
        plan: which prompts hold for which image at which step.
        conditioning: what the plan's prompts became.
        images: indices of the images in the request.
        cancel: setting it ends the trajectory before its next evaluation.
    """

    def __init__(
        self,
        request: Request,
        program: SamplerProgram,
        plan: PromptPlan,
        conditioning: Conditioning,
        images: Sequence[int],
        cancel: threading.Event | None = None,
    ) -> None:
        self.request = request
        self.program = program
        self.conditioning = conditioning
        self.images = images
        self.cancel = cancel
        by_step = [plan.rows(step) for step in range(request.steps)]
        self._row_plans = _row_plans([[rows[i] for i in images] for rows in by_step])

    def run(
        self,
        networks: Networks,
        noise: NoiseSource,
        clock: StageClock,
        clean_every: int = 0,
        watched: bool = True,
    ) -> Iterator[Evaluation]:
        """Evaluate the U-Net step by step, on its device where that runs the steps itself.

        Args:
            networks: of the open bundle.
            noise: draws for these images.
            clock: where time is counted.
            clean_every: estimate the clean latents at every n-th step; 0 for never.
            watched: somebody looks at every evaluation; if not, the last one may be all there is.

        Raises:
            NonFiniteError: a step gave NaN or infinity.
            Cancelled: the caller cancelled.
        """
        architecture = networks.bundle.manifest.architecture
        unet, inputs = self._load(networks, architecture, clock)
        kind = self._kind(architecture)
        plans, request = self._row_plans, self.request
        device, reason = choose_device(unet, kind, plans, request.guidance_rescale, clean_every)
        if device is None:
            _log.debug("the host runs the sampler's steps: %s", reason)
            yield from self._run_on_host(unet, inputs, noise, clock, clean_every)
        else:
            yield from self._run_on_device(device, kind, inputs, noise, clock, watched)

    def _kind(self, architecture: Architecture) -> TrajectoryKind:
        program = self.program
        return TrajectoryKind(
            batch=len(self.images),
            copies=2 if self._row_plans[0].has_negative else 1,
            channels=architecture.vae.latent_channels,
            evaluations=len(program.t),
            registers=program.num_registers,
        )

    def _run_on_device(
        self,
        device: RunsTrajectories,
        kind: TrajectoryKind,
        inputs: UNetInputs,
        noise: NoiseSource,
        clock: StageClock,
        watched: bool,
    ) -> Iterator[Evaluation]:
        program = self.program
        registers, _ = self._start(noise, inputs.sample.shape)
        if not device.is_ready(kind):
            with clock.stage("load"):
                device.prepare(kind)
        with clock.stage("unet", calls=0):
            run = device.begin(kind, program, self.request.guidance_scale, registers[0])
        found = run_on_device(
            run, program, self._row_plans, inputs, noise, clock, watched, self.cancel
        )
        for k, latents in found:
            yield Evaluation(k, latents, None)

    def _run_on_host(
        self,
        unet: Module,
        inputs: UNetInputs,
        noise: NoiseSource,
        clock: StageClock,
        clean_every: int,
    ) -> Iterator[Evaluation]:
        program, request = self.program, self.request
        registers, step_noise = self._start(noise, inputs.sample.shape)
        latents = registers[0].view()
        latents.flags.writeable = False
        needs_noise = program.needs_noise
        for k in range(len(program.t)):
            check_cancelled(self.cancel)
            step = int(program.step[k])
            plan = self._row_plans[step]
            inputs.use(plan)
            self._scale(registers[0], float(program.c_in[k]), inputs.sample)
            inputs.timestep.fill(program.t[k])
            if needs_noise[k]:
                noise.step(step_noise)
            with clock.stage("unet"):
                noise_pred = unet.run(inputs.arrays)["noise_pred"]
            wants_clean = clean_every > 0 and (step + 1) % clean_every == 0
            if wants_clean or not plan.is_plain or request.guidance_rescale > 0:
                noise_pred = guide(
                    noise_pred, plan, request.guidance_scale, request.guidance_rescale
                )
            clean = None
            if wants_clean:
                scaled = inputs.sample[: len(self.images)]
                clean = self._clean(k, scaled, noise_pred)
            finite = _native.guided_step(
                registers,
                noise_pred,
                request.guidance_scale,
                program.A[k],
                program.b[k],
                program.d[k],
                step_noise if needs_noise[k] else None,
            )
            if not finite:
                raise NonFiniteError(
                    f"unet: evaluation {k + 1} of {len(program.t)} gave NaN or infinity. "
                    f"{FP32_HINT}"
                )
            yield Evaluation(k, latents, clean)

    def _load(
        self, networks: Networks, architecture: Architecture, clock: StageClock
    ) -> tuple[Module, UNetInputs]:
        request = self.request
        rows = len(self._row_plans[0].rows)
        sequence = self.conditioning.prompt_embeds.shape[1]
        unet = networks.get(
            "unet", rows, request.height, request.width, sequence=sequence, clock=clock
        )
        shape = latents_shape(architecture, rows, request.height, request.width)
        return unet, UNetInputs(unet, architecture.unet, self.conditioning, request, shape)

    def _start(self, noise: NoiseSource, sample_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Return the registers at their start, and a buffer for each step's noise."""
        shape = (len(self.images), *sample_shape[1:])
        registers = np.zeros((self.program.num_registers, *shape), dtype=np.float32)
        np.multiply(noise.initial(), np.float32(self.program.init_scale), out=registers[0])
        step_noise = np.empty(shape, dtype=np.float32)
        if self.program.init_noise:
            noise.step(step_noise)
            registers[0] += np.float32(self.program.init_noise) * step_noise
        return registers, step_noise

    def _scale(self, latents: Array, factor: float, sample: Array) -> None:
        """Write the scaled latents to every block of rows."""
        count = len(self.images)
        _native.scale_duplicate(latents, factor, sample[: 2 * count])
        for first in range(2 * count, len(sample), count):  # of prompts joined by AND
            sample[first : first + count] = sample[:count]

    def _clean(self, k: int, scaled: Array, guided: Array) -> Array:
        sigma = float(self.program.sigma[k])
        alpha = 1 / np.sqrt(sigma**2 + 1)
        p, q = clean_from_scaled(self.program.prediction_type, alpha, sigma * alpha)
        clean: Array = np.float32(p) * scaled + np.float32(q) * guided
        return clean


def _row_plans(
    by_step: Sequence[Sequence[tuple[int | None, Sequence[tuple[int, float]]]]],
) -> list[RowPlan]:
    """Lay out the rows of each step; steps with equal rows share one plan object."""
    blocks = max(len(parts) for images in by_step for _, parts in images)
    made: dict[tuple[tuple[int, ...], tuple[float, ...]], RowPlan] = {}
    plans = []
    for images in by_step:
        has_negative = images[0][0] is not None
        rows = [negative for negative, _ in images if negative is not None]
        weights = np.zeros((blocks, len(images)), dtype=np.float32)
        for block in range(blocks):
            for i, (_, parts) in enumerate(images):
                # A missing part is computed from the first one and counts nothing.
                row, weight = parts[block] if block < len(parts) else (parts[0][0], 0.0)
                rows.append(row)
                weights[block, i] = weight
        key = (tuple(rows), tuple(weights.ravel().tolist()))
        plans.append(made.setdefault(key, RowPlan(tuple(rows), weights, has_negative)))
    return plans
