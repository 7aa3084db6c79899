"""DPM-Solver++ on the stochastic equation: fresh noise in every step; latents are unscaled.

Source: "DPM-Solver++" (Lu et al. 2022), section 5: the stochastic exponential integrator in
lambda = -log sigma; eta scales its noise as in k-diffusion. Noise is that of a Brownian motion
in sigma, so the noises of overlapping intervals are correlated.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.dpmpp import towards
from sdengine.samplers.euler import ancestral_split
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span, level_timestep, one_step_path
from sdengine.samplers.program import SamplerProgram


def dpmpp_sde(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the single-step program with its second evaluation half-way in lambda.

    Register 2 keeps the noise of the first half: the whole step's noise contains it.
    """
    path = one_step_path(schedule, span, noise_schedule)
    build = ProgramBuilder("dpmpp_sde", schedule, noise_schedule, 3, scaled=False)
    point, start, half_noise = build.r
    for k in range(path.steps):
        sigma, after = float(path.sigma[k]), float(path.sigma[k + 1])
        clean = build.clean(sigma)
        if after == 0:
            build.commit(k, path.t[k], sigma, clean)
            continue
        middle = float(np.sqrt(sigma * after))
        down, up = ancestral_split(sigma, middle, options)
        x = towards(point, clean, down / sigma) + up * build.noise
        kept_noise = build.noise if up > 0 else build.zero
        build.commit(k, path.t[k], sigma, x, point, kept_noise)
        clean = build.clean(middle)
        down, up = ancestral_split(sigma, after, options)
        share = (sigma - middle) / (sigma - after)
        noise = np.sqrt(share) * half_noise + np.sqrt(1 - share) * build.noise
        x = towards(start, clean, down / sigma) + up * noise
        build.commit(k, level_timestep(noise_schedule, middle), middle, x)
    return build.program(path)


def dpmpp_2m_sde(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the multistep program of second order, midpoint form."""
    return _multistep("dpmpp_2m_sde", schedule, span, noise_schedule, options)


def dpmpp_2m_sde_heun(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the multistep program of second order, Heun form."""
    return _multistep("dpmpp_2m_sde_heun", schedule, span, noise_schedule, options)


def dpmpp_3m_sde(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the multistep program of third order."""
    return _multistep("dpmpp_3m_sde", schedule, span, noise_schedule, options)


def _multistep(
    name: str, schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    path = one_step_path(schedule, span, noise_schedule)
    sigma = path.sigma
    eta = 1.0 if options.eta is None else options.eta
    s_noise = 1.0 if options.s_noise is None else options.s_noise
    order = 3 if name == "dpmpp_3m_sde" else 2
    build = ProgramBuilder(name, schedule, noise_schedule, order, scaled=False)
    x, last, *earlier = build.r
    for k in range(path.steps):
        clean = build.clean(sigma[k])
        if sigma[k + 1] == 0:
            build.commit(k, path.t[k], sigma[k], clean)
            continue
        h = np.log(sigma[k] / sigma[k + 1])
        h_eta = h * (1 + eta)
        moved = np.exp(-h_eta) * x - np.expm1(-h_eta) * clean
        phi_2 = 1 + np.expm1(-h_eta) / h_eta
        if k > 1 and earlier:
            r0 = np.log(sigma[k - 1] / sigma[k]) / h
            r1 = np.log(sigma[k - 2] / sigma[k - 1]) / h
            change, change_before = (clean - last) / r0, (last - earlier[0]) / r1
            curvature = (change - change_before) / (r0 + r1)
            first = change + curvature * r0
            moved = moved + phi_2 * first - (phi_2 / h_eta - 0.5) * curvature
        elif k > 0:
            r0 = np.log(sigma[k - 1] / sigma[k]) / h
            factor = -0.5 * np.expm1(-h_eta) if name == "dpmpp_2m_sde" else phi_2
            moved = moved + factor / r0 * (clean - last)
        up = sigma[k + 1] * np.sqrt(-np.expm1(-2 * eta * h)) * s_noise
        build.commit(
            k, path.t[k], sigma[k], moved + up * build.noise, clean, *[last] * len(earlier)
        )
    return build.program(path)
