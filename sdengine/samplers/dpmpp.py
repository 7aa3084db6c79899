"""DPM-Solver++ without fresh noise in its steps, and the ancestral single-step form.

Source: "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (Lu et al.
2022), algorithms 1 and 2, data prediction. lambda = -log sigma is half the log of the signal to
noise ratio.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.euler import ancestral_split
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span, level_timestep, multistep_path, one_step_path
from sdengine.samplers.program import SamplerProgram


def dpmpp_2m(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the multistep program, midpoint form; the first and the last step are of first order."""
    path = multistep_path(schedule, span, noise_schedule)
    sigma = path.sigma
    build = ProgramBuilder("dpmpp_2m", schedule, noise_schedule, 2, scaled=True)
    x, last_clean = build.r
    for k in range(path.steps):
        clean = build.clean(sigma[k])
        if k == path.steps - 1:
            build.commit(k, path.t[k], sigma[k], clean, clean)
            continue
        alpha, alpha_after = 1 / np.sqrt(sigma[k : k + 2] ** 2 + 1)
        h = np.log(sigma[k] / sigma[k + 1])
        estimate = clean
        if k > 0:
            # Extrapolate the estimate by half of its last change, per unit of lambda.
            ratio = np.log(sigma[k - 1] / sigma[k]) / h
            estimate = clean + (clean - last_clean) * (0.5 / ratio)
        kept = sigma[k + 1] * alpha_after / (sigma[k] * alpha)
        build.commit(
            k, path.t[k], sigma[k], kept * x - alpha_after * np.expm1(-h) * estimate, clean
        )
    return build.program(path)


def dpmpp_2s_ancestral(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the ancestral single-step program with its second evaluation half-way in lambda."""
    path = one_step_path(schedule, span, noise_schedule)
    build = ProgramBuilder("dpmpp_2s_a", schedule, noise_schedule, 2, scaled=False)
    point, start = build.r
    for k in range(path.steps):
        sigma = float(path.sigma[k])
        down, up = ancestral_split(sigma, path.sigma[k + 1], options)
        clean = build.clean(sigma)
        if down == 0:
            build.commit(k, path.t[k], sigma, clean + up * build.noise)
            continue
        middle = float(np.sqrt(sigma * down))
        build.commit(k, path.t[k], sigma, towards(point, clean, middle / sigma), point)
        clean = build.clean(middle)
        x = towards(start, clean, down / sigma)
        build.commit(k, level_timestep(noise_schedule, middle), middle, x + up * build.noise)
    return build.program(path)


def towards(x: np.ndarray, clean: np.ndarray, ratio: float) -> np.ndarray:
    """Return unscaled latents whose noise shrank to a ratio of what it was.

    This is the exact solution, exp(-h) x + (1 - exp(-h)) clean with ratio = exp(-h), when the
    estimate of the clean latents stays the same.
    """
    moved: np.ndarray = ratio * x + (1 - ratio) * clean
    return moved
