"""Sampler steps beside the native U-Net: many of them in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

from sdengine.backends.base import Array
from sdengine.backends.native.laid_out_network import LaidOutNetwork
from sdengine.errors import NonFiniteError
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource

SAMPLE, TIMESTEP, NOISE_PRED = "sample", "timestep", "noise_pred"
MAX_REGISTERS = 8  # csrc/common/step.h


class NativeRun:
    """One trajectory; see `sdengine.backends.device_protocols.DeviceRun`.

    Nothing of it lies in the network's memory between two calls.

    Args:
        bound: gives the network with the weights of the run, which another run's may have replaced
            since; it is without what no input is given for.
        program: the sampler's numbers.
        guidance_scale: of the request.
        registers: [R,B,C,h,w] before evaluation `first`; written to.
        first: the evaluation that it begins with.
    """

    def __init__(
        self,
        bound: Callable[[], LaidOutNetwork],
        program: SamplerProgram,
        guidance_scale: float,
        registers: Array,
        first: int,
    ) -> None:
        self._bound = bound
        self._program = program
        self._guidance_scale = guidance_scale
        self._registers = registers
        self._done = first
        self._inputs: list[tuple[Array, Array]] = []
        self._is_finite = True
        self._latents: Array = registers[0].view()
        self._latents.flags.writeable = False

    def use(self, inputs: Mapping[str, Array]) -> None:
        """Have the network read other inputs than those that steps write."""
        self._inputs = [
            (view, np.ascontiguousarray(inputs[name], dtype=view.dtype))
            for name, view in self._bound().inputs.items()
            if name not in (SAMPLE, TIMESTEP)
        ]

    def advance(self, count: int, noise: NoiseSource) -> int:
        """Run the next evaluations, up to one that gives no numbers."""
        if not self._is_finite:
            return 0
        started = time.perf_counter_ns()
        program, maps = self._program, self._bound()
        ran, self._is_finite, network_ns = maps.network.run_steps(
            self._inputs,
            maps.inputs[SAMPLE],
            maps.inputs[TIMESTEP],
            maps.outputs[NOISE_PRED],
            self._registers,
            program.t,
            program.c_in,
            program.A,
            program.b,
            program.d,
            self._guidance_scale,
            self._done,
            count,
            noise.generators,
        )
        self._done += ran
        return time.perf_counter_ns() - started - network_ns

    def steps_done(self) -> int:
        """Tell how many evaluations have run."""
        return self._done

    def latents(self) -> Array:
        """Return the latents, which the next call overwrites."""
        if not self._is_finite:
            raise NonFiniteError(
                f"unet: evaluation {self._done} of {len(self._program.t)} gave NaN or infinity"
            )
        return self._latents

    def hand_over(self) -> Array:
        """Return the registers for another run."""
        self.latents()
        return self._registers

    def cancel(self) -> None:
        """Do nothing: who may cancel asks for one evaluation at a time."""
