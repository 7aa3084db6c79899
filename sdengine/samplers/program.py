"""A sampler as a linear program: every step is one network evaluation and one matrix of numbers.

    registers r[0..R-1], r[0] = x
    for k in 0..K-1:
        m     = guided(denoiser(c_in[k] * r[0], t[k]))
        r'[i] = sum_j A[k,i,j] r[j] + b[k,i] m + d[k,i] noise[k]

The numbers are computed on the host in float64; native code applies them to fp32 registers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sdengine.samplers.noise_schedule import Float64
from sdengine.samplers.prediction import Form, clean_from_edm, clean_from_scaled


class Evaluation(NamedTuple):
    """Row k of a program's `step`, `t`, `c_in`, `A`, `b`, `d`; whether fresh noise enters."""

    step: int
    t: float
    c_in: float
    A: Float64
    b: Float64
    d: Float64
    needs_noise: bool


@dataclass(frozen=True)
class SamplerProgram:
    """Hold a sampler's numbers for K evaluations over R registers.

    Attributes:
        sampler, schedule: names of what the program was made from.
        prediction_type: what the network's output is.
        step: [K] the user's step that each evaluation belongs to.
        t: [K] timesteps given to the network.
        c_in: [K] factors on r[0] before the network reads it.
        sigma: [K] noise level before each evaluation, relative to the signal.
        A: [K,R,R], b: [K,R], d: [K,R] coefficients of registers, network output and noise.
        init_scale: r[0] starts as init_scale times unit noise, the other registers as zero.
        init_noise: times a second unit noise is added to r[0] at the start.
        init_signal: times the latents of a picture is added to r[0] at the start; 0 where the
            trajectory starts from noise alone.
        scaled: whether r[0] is alpha x0 + sigma_hat noise, else x0 + sigma noise.
        sigma_data: of EDM's preconditioning; None for other networks.
    """

    sampler: str
    schedule: str
    prediction_type: str
    step: npt.NDArray[np.int_]
    t: Float64
    c_in: Float64
    sigma: Float64
    A: Float64
    b: Float64
    d: Float64
    init_scale: float
    init_noise: float = 0.0
    init_signal: float = 0.0
    scaled: bool = True
    sigma_data: float | None = None

    @property
    def num_registers(self) -> int:
        """Number of latent-shaped registers R."""
        return int(self.b.shape[1])

    @cached_property
    def needs_noise(self) -> tuple[bool, ...]:
        """Tell for each evaluation whether fresh noise enters."""
        return tuple(bool(row.any()) for row in self.d)

    def until(self, end: int) -> SamplerProgram:
        """Return the program of the evaluations before one."""
        if end == len(self.t):
            return self
        names = ("step", "t", "c_in", "sigma", "A", "b", "d")
        return replace(self, **{name: getattr(self, name)[:end] for name in names})

    @cached_property
    def levels(self) -> Float64:
        """[K+1,2] factors of x0 and of the noise in r[0] before each evaluation and at the end."""
        sigma = np.append(self.sigma, 0.0)
        alpha = 1 / np.sqrt(sigma**2 + 1) if self.scaled else np.ones_like(sigma)
        return np.stack([alpha, sigma * alpha], axis=1)

    def clean_form(self, k: int) -> Form:
        """Return x0 as a form of what the network reads at evaluation k and what it answers."""
        sigma = float(self.sigma[k])
        if self.sigma_data is not None:
            p, q = clean_from_edm(self.prediction_type, sigma, self.sigma_data)
            return p * float(np.sqrt(self.sigma_data**2 + sigma**2)), q
        alpha = float(1 / np.sqrt(sigma**2 + 1))
        return clean_from_scaled(self.prediction_type, alpha, sigma * alpha)

    @cached_property
    def evaluations(self) -> tuple[Evaluation, ...]:
        """The numbers of each evaluation, for a loop over them."""
        steps, t, c_in = self.step.tolist(), self.t.tolist(), self.c_in.tolist()
        rows = zip(steps, t, c_in, self.A, self.b, self.d, self.needs_noise, strict=True)
        return tuple(Evaluation(*row) for row in rows)
