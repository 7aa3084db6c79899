"""Trajectory: a sampler program's evaluations of the U-Net, from noise to clean latents."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdengine import _native
from sdengine.backends.device_protocols import (
    DeviceRun,
    RunsTrajectories,
    TrajectoryKind,
    runs_at_once,
)
from sdengine.errors import NonFiniteError
from sdengine.pipeline.clock import StageClock
from sdengine.pipeline.device_trajectory import Seen, choose_device, run_on_device
from sdengine.pipeline.guidance import guide
from sdengine.pipeline.known_part import KnownPart
from sdengine.pipeline.row_plan import RowPlan
from sdengine.pipeline.steering import Steering
from sdengine.pipeline.tiled_unet import TiledUNet
from sdengine.pipeline.turns import check_cancelled
from sdengine.pipeline.unet_inputs import UNetInputs
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource

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
        inputs: of a U-Net for each number of rows that the plans have.
        program: the sampler's numbers.
        row_plans: of every step.
        guidance_scale, guidance_rescale: as in `sdengine.Request`.
        cancel: setting it ends the trajectory before its next evaluation.
        steering: its controls, if any; those of tiles are theirs.
        tiles: how its latents are divided among runs of the U-Net; None for not at all.
        shares: [parts,B,1,h,w] fp32 of what parts joined by AND count in each latent cell, where
            they have regions.
    """

    def __init__(
        self,
        inputs: Mapping[int, UNetInputs],
        program: SamplerProgram,
        row_plans: Sequence[RowPlan],
        guidance_scale: float,
        guidance_rescale: float = 0.0,
        cancel: threading.Event | None = None,
        steering: Steering | None = None,
        tiles: TiledUNet | None = None,
        shares: Array | None = None,
    ) -> None:
        self.inputs = inputs
        self.program = program
        self.row_plans = row_plans
        self.guidance_scale = guidance_scale
        self.guidance_rescale = guidance_rescale
        self.cancel = cancel
        self.steering = steering
        self.tiles = tiles
        self.shares = shares

    def run(
        self,
        noise: NoiseSource,
        clock: StageClock,
        clean_every: int = 0,
        seen: Seen = "latents",
        start: Array | None = None,
        known: KnownPart | None = None,
    ) -> Iterator[Evaluation]:
        """Evaluate the U-Net step by step, on its device where that runs the steps itself.

        Args:
            noise: draws for these images.
            clock: where time is counted.
            clean_every: estimate the clean latents at every n-th step; 0 for never.
            seen: what somebody looks at of every evaluation; with "nothing" the last one may be all
                there is.
            start: latents [B,C,h,w] of the picture that it starts from; None for noise alone.
            known: what is kept of a picture.

        Raises:
            NonFiniteError: a step gave NaN or infinity.
            Cancelled: the caller cancelled.
        """
        devices: dict[int, RunsTrajectories] = {}
        kinds = {rows: self._kind(rows) for rows in self.inputs}
        for rows, inputs in self.inputs.items():
            device, reason = choose_device(
                inputs.unet,
                kinds[rows],
                self.row_plans,
                self.guidance_rescale,
                clean_every,
                keeps_part=known is not None,
                has_extra=inputs.has_extra,
                is_steered=self.steering is not None,
                reads_pictures=inputs.reads_pictures,
                is_tiled=self.tiles is not None,
            )
            if device is None:
                _log.debug("the host runs the sampler's steps: %s", reason)
                yield from self._run_on_host(noise, clock, clean_every, start, known)
                return
            devices[rows] = device
        yield from self._run_on_device(devices, kinds, noise, clock, seen, start)

    def _kind(self, rows: int) -> TrajectoryKind:
        return TrajectoryKind(
            batch=self._num_images,
            copies=min(rows // self._num_images, 2),
            channels=self._latents_shape[1],
            evaluations=len(self.program.t),
            registers=self.program.num_registers,
        )

    @property
    def _num_images(self) -> int:
        return self.row_plans[0].num_images

    @property
    def _latents_shape(self) -> tuple[int, ...]:
        """Shape of one copy of the latents [B,C,h,w]."""
        inputs = next(iter(self.inputs.values()))
        _, channels, *sides = inputs.latents_shape
        if self.tiles is not None:
            sides = [*self.tiles.grid.canvas]
        return (self._num_images, channels, *sides)

    def _run_on_device(
        self,
        devices: Mapping[int, RunsTrajectories],
        kinds: Mapping[int, TrajectoryKind],
        noise: NoiseSource,
        clock: StageClock,
        seen: Seen,
        start: Array | None,
    ) -> Iterator[Evaluation]:
        program = self.program
        registers, _ = self._start(noise, start)
        for rows, device in devices.items():
            if not device.is_ready(kinds[rows]):
                with clock.stage("load"):
                    device.prepare(kinds[rows])

        def begin(rows: int, first: int, end: int, registers: Array) -> DeviceRun:
            # Only the noise of these evaluations is drawn ahead: the rest is for who goes on.
            part = program.until(end)
            device = devices[rows]
            return device.begin(kinds[rows], part, self.guidance_scale, registers, first)

        if all(map(runs_at_once, devices.values())):
            # A look costs nothing, and nothing is to be told to end in the middle of a call.
            seen = "latents" if seen == "steps" or self.cancel is not None else seen
        found = run_on_device(
            begin, registers, program, self.row_plans, self.inputs, noise, clock, seen,
            self.cancel,
        )  # fmt: skip
        for k, latents in found:
            yield Evaluation(k, latents, None)

    def _run_on_host(
        self,
        noise: NoiseSource,
        clock: StageClock,
        clean_every: int,
        start: Array | None,
        known: KnownPart | None,
    ) -> Iterator[Evaluation]:
        program = self.program
        registers, first_noise = self._start(noise, start)
        step_noise = np.empty(self._latents_shape, dtype=np.float32)
        latents = registers[0].view()
        latents.flags.writeable = False
        for k, numbers in enumerate(program.evaluations):
            check_cancelled(self.cancel)
            plan = self.row_plans[numbers.step]
            scale, rescale = self._guidance(plan)
            if numbers.needs_noise:
                noise.step(step_noise)
            scaled, noise_pred = self._predict(k, registers[0], plan, clock)
            wants_clean = clean_every > 0 and (numbers.step + 1) % clean_every == 0
            blends = known is not None and known.rule == "clean"
            is_guided_here = blends or not plan.is_plain or rescale > 0
            clean = None
            if is_guided_here or wants_clean:
                guided = guide(noise_pred, plan, scale, rescale, self.shares)
                if blends and known is not None:
                    guided = known.blend_output(program, k, scaled, guided)
                if wants_clean:
                    clean = self._clean(k, scaled, guided)
                if is_guided_here:  # else the step does it, with the same bits as without a preview
                    noise_pred = guided
            finite = _native.guided_step(
                registers,
                noise_pred,
                scale,
                numbers.A,
                numbers.b,
                numbers.d,
                step_noise if numbers.needs_noise else None,
            )
            if not finite:
                if self.steering is not None:
                    self.steering.require_finite(k)
                raise NonFiniteError.at(
                    "unet", f"evaluation {k + 1} of {len(program.t)} gave NaN or infinity"
                )
            if known is not None and known.rule == "latents":
                known.blend_latents(program, k, registers[0], first_noise)
            yield Evaluation(k, latents, clean)

    def _start(self, noise: NoiseSource, start: Array | None) -> tuple[Array, Array]:
        """Return the registers at their start, and the first noise."""
        shape = self._latents_shape
        registers = np.zeros((self.program.num_registers, *shape), dtype=np.float32)
        first_noise = noise.initial()
        np.multiply(first_noise, np.float32(self.program.init_scale), out=registers[0])
        if start is not None:
            registers[0] += np.float32(self.program.init_signal) * start
        if self.program.init_noise:
            second_noise = np.empty(shape, dtype=np.float32)
            noise.step(second_noise)
            registers[0] += np.float32(self.program.init_noise) * second_noise
        return registers, first_noise

    def _predict(
        self, k: int, latents: Array, plan: RowPlan, clock: StageClock
    ) -> tuple[Array, Array]:
        """Return the scaled latents [B,C,h,w] and what the U-Net predicts of each row."""
        numbers = self.program.evaluations[k]
        inputs = self.inputs[len(plan.rows)]
        inputs.use(plan)
        inputs.timestep.fill(numbers.t)
        if self.tiles is not None:
            scaled = latents * np.float32(numbers.c_in)
            return scaled, self.tiles.predict(k, scaled, inputs, plan, clock, self.cancel)
        self._scale(latents, numbers.c_in, inputs.sample)
        arrays: Mapping[str, NDArray[Any]] = inputs.arrays
        if self.steering is not None:
            arrays = self.steering.arrays(k, inputs, plan, clock)
        with clock.stage("unet"):
            noise_pred = inputs.predict(k, plan, arrays)
        return inputs.sample[: self._num_images], noise_pred

    def _guidance(self, plan: RowPlan) -> tuple[float, float]:
        """Return scale and rescale; outside the interval the conditional output counts as it is."""
        return (self.guidance_scale, self.guidance_rescale) if plan.is_guided else (1.0, 0.0)

    def _scale(self, latents: Array, factor: float, sample: Array) -> None:
        """Write the scaled latents to every block of rows."""
        count = self._num_images
        begin = 0
        if sample.flags.c_contiguous:
            _native.scale_duplicate(latents, factor, sample[: 2 * count])
            begin = 2 * count
        else:  # other channels lie between the rows
            np.multiply(latents, np.float32(factor), out=sample[:count])
            begin = count
        for first in range(begin, len(sample), count):
            sample[first : first + count] = sample[:count]

    def _clean(self, k: int, scaled: Array, guided: Array) -> Array:
        p, q = self.program.clean_form(k)
        clean: Array = np.float32(p) * scaled + np.float32(q) * guided
        return clean
