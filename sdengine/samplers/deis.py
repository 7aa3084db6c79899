"""DEIS: polynomial extrapolation of the noise estimate in log rho, rho = sigma.

Source: "Fast Sampling of Diffusion Models with Exponential Integrator" (Zhang and Chen 2022),
equation 15 in the variable rho, with Lagrange polynomials of log rho.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span, multistep_path
from sdengine.samplers.program import SamplerProgram

# Below this many steps the last one is of first order, which is more stable.
_FEW_STEPS = 15


def deis(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program of second order; register 1 keeps the last noise estimate.

    It stops at the training schedule's lowest level, as published, not at zero.
    """
    path = multistep_path(schedule, span, noise_schedule)
    rho = np.append(path.sigma[:-1], noise_schedule.sigmas[0])
    build = ProgramBuilder("deis", schedule, noise_schedule, 2, scaled=True)
    x, last_noise = build.r
    for k in range(path.steps):
        alpha, alpha_after = 1 / np.sqrt(rho[k : k + 2] ** 2 + 1)
        noise = (x / alpha - build.clean(rho[k])) / rho[k]
        if k == 0 or (k == path.steps - 1 and span.steps < _FEW_STEPS):
            moved = x / alpha + (rho[k + 1] - rho[k]) * noise
        else:
            moved = x / alpha + _weight(rho[k], rho[k + 1], rho[k], rho[k - 1]) * noise
            moved = moved + _weight(rho[k], rho[k + 1], rho[k - 1], rho[k]) * last_noise
        build.commit(k, path.t[k], rho[k], alpha_after * moved, noise)
    return build.program(path)


def _weight(start: float, end: float, own: float, other: float) -> float:
    """Integrate log(rho / other) / log(own / other) from start to end."""

    def antiderivative(rho: float) -> float:
        return float(rho * (np.log(rho / other) - 1) / np.log(own / other))

    return antiderivative(end) - antiderivative(start)
