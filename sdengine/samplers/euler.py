"""Euler's method on the probability-flow equation, plain and ancestral; latents are unscaled.

Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022),
algorithms 1 and 2 without the second-order correction; the ancestral split of the noise is that of
"Denoising Diffusion Probabilistic Models" (Ho et al. 2020).
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span, level_timestep, one_step_path
from sdengine.samplers.program import SamplerProgram


def euler(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program; churn raises the noise level before each step."""
    path = one_step_path(schedule, span, noise_schedule, repeats=True)
    build = ProgramBuilder("euler", schedule, noise_schedule, 1, scaled=False)
    churn = Churn(path.sigma, path.t, noise_schedule, options)
    for k in range(path.steps):
        sigma, t = churn.level(k)
        clean = build.clean(sigma)
        slope = (build.r[0] - clean) / sigma
        x = build.r[0] + slope * (path.sigma[k + 1] - sigma)
        build.commit(k, t, sigma, x + churn.noise_before(k + 1) * build.noise)
    return build.program(path, churn.noise_before(0))


def euler_ancestral(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the ancestral program: each step but the last adds fresh noise."""
    path = one_step_path(schedule, span, noise_schedule, repeats=True)
    build = ProgramBuilder("euler_a", schedule, noise_schedule, 1, scaled=False)
    for k in range(path.steps):
        sigma = path.sigma[k]
        down, up = ancestral_split(sigma, path.sigma[k + 1], options)
        clean = build.clean(sigma)
        x = build.r[0] + (build.r[0] - clean) / sigma * (down - sigma)
        build.commit(k, path.t[k], sigma, x + up * build.noise)
    return build.program(path)


def ancestral_split(sigma: float, after: float, options: SamplerOptions) -> tuple[float, float]:
    """Split the next noise level into what is kept and what is added afresh, s_noise included."""
    eta = 1.0 if options.eta is None else options.eta
    s_noise = 1.0 if options.s_noise is None else options.s_noise
    up = min(after, eta * np.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
    return float(np.sqrt(after**2 - up**2)), float(up * s_noise)


class Churn:
    """The raised noise levels of a path, and the noise that raises them.

    Args:
        sigma, t: the path's levels with the final 0, and their timesteps.
        noise_schedule: gives raised levels their timesteps.
        options: s_churn, s_tmin, s_tmax and s_noise.
    """

    def __init__(
        self, sigma: Float64, t: Float64, noise_schedule: NoiseSchedule, options: SamplerOptions
    ) -> None:
        self._sigma = sigma
        self._t = t
        self._noise_schedule = noise_schedule
        self._options = options

    def level(self, k: int) -> tuple[float, float]:
        """Return the level that step k starts from and its timestep."""
        raised = self._options.churned(self._sigma[k], len(self._t))
        if raised == self._sigma[k]:
            return float(raised), float(self._t[k])
        return raised, level_timestep(self._noise_schedule, raised)

    def noise_before(self, k: int) -> float:
        """Return the factor of the noise that is added before step k; 0 after the last step."""
        if k >= len(self._t):
            return 0.0
        raised = self._options.churned(self._sigma[k], len(self._t))
        s_noise = 1.0 if self._options.s_noise is None else self._options.s_noise
        return float(np.sqrt(max(raised**2 - self._sigma[k] ** 2, 0.0)) * s_noise)
