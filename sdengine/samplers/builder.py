"""Write a sampler as its paper does; get the numbers of its linear program.

What a step computes with (registers, the network's output, fresh noise) are linear forms: vectors
of coefficients that can be added and scaled. So `x + (x - clean) / sigma * dt` is both the code and
the row of the program's matrix.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.prediction import (
    clean_from_edm,
    clean_from_scaled,
    clean_from_unscaled,
)
from sdengine.samplers.program import SamplerProgram


class Stops(Protocol):
    """What a program needs of a path: its levels, and what latents are at the first of them."""

    @property
    def sigma(self) -> Float64: ...
    @property
    def init_scale(self) -> float: ...
    @property
    def from_picture(self) -> bool: ...


class ProgramBuilder:
    """Collect the evaluations of a program.

    Args:
        sampler, schedule: names that the program carries.
        noise_schedule: of the checkpoint.
        registers: how many the sampler needs; register 0 is what the network reads.
        scaled: whether latents are alpha x0 + sigma_hat noise, else x0 + sigma noise.
    """

    def __init__(
        self,
        sampler: str,
        schedule: str,
        noise_schedule: NoiseSchedule,
        registers: int,
        *,
        scaled: bool,
    ) -> None:
        self._names = (sampler, schedule)
        self._noise_schedule = noise_schedule
        self._scaled = scaled
        self._registers = registers
        self._rows: list[tuple[int, float, float, Float64]] = []
        forms = np.eye(registers + 2)
        self.r: list[Float64] = list(forms[:registers])
        self.output: Float64 = forms[registers]
        self.noise: Float64 = forms[registers + 1]
        self.zero: Float64 = np.zeros(registers + 2)

    def clean(self, sigma: float) -> Float64:
        """Return the estimate of the clean latents when register 0 has noise level sigma."""
        kind = self._noise_schedule.prediction_type
        alpha = 1 / np.sqrt(sigma**2 + 1)
        if (sigma_data := self._noise_schedule.sigma_data) is not None:
            p, q = clean_from_edm(kind, sigma, sigma_data)
            p = p / alpha if self._scaled else p
        elif self._scaled:
            p, q = clean_from_scaled(kind, alpha, sigma * alpha)
        else:
            p, q = clean_from_unscaled(kind, sigma)
        form: Float64 = p * self.r[0] + q * self.output
        return form

    def commit(self, step: int, t: float, sigma: float, *values: Float64) -> None:
        """End an evaluation.

        Args:
            step: the user's step that it belongs to.
            t: timestep that the network is given, unless it reads noise levels.
            sigma: noise level of register 0 before it.
            values: the registers after it; those left out become zero.
        """
        padded = [*values, *[self.zero] * (self._registers - len(values))]
        if self._noise_schedule.continuous_timesteps:
            t = float(np.log(sigma)) / 4
        self._rows.append((step, t, sigma, np.stack(padded)))

    def program(self, stops: Stops, init_noise: float = 0.0) -> SamplerProgram:
        """Return the program of what was committed.

        Args:
            stops: where the trajectory stops; it starts at the first of them.
            init_noise: as in `SamplerProgram`.
        """
        init_scale, init_signal = stops.init_scale, 0.0
        if stops.from_picture:
            first = float(stops.sigma[0])
            init_signal = 1 / math.sqrt(first**2 + 1) if self._scaled else 1.0
            init_scale = first * init_signal
        count = self._registers
        rows = np.stack([row[3] for row in self._rows])
        sigma = np.array([row[2] for row in self._rows])
        # From the latents to unscaled ones, and from there to what the network reads.
        unscaled = np.sqrt(sigma**2 + 1) if self._scaled else np.ones_like(sigma)
        read = (self._noise_schedule.sigma_data or 1.0) ** 2 + sigma**2
        return SamplerProgram(
            sampler=self._names[0],
            schedule=self._names[1],
            prediction_type=self._noise_schedule.prediction_type,
            step=np.array([row[0] for row in self._rows]),
            t=np.array([row[1] for row in self._rows]),
            c_in=unscaled / np.sqrt(read),
            sigma=sigma,
            A=np.ascontiguousarray(rows[:, :, :count]),
            b=np.ascontiguousarray(rows[:, :, count]),
            d=np.ascontiguousarray(rows[:, :, count + 1]),
            init_scale=init_scale,
            init_noise=init_noise,
            init_signal=init_signal,
            scaled=self._scaled,
            sigma_data=self._noise_schedule.sigma_data,
        )
