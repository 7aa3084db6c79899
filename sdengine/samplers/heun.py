"""Second-order steps of two evaluations: Heun, DPM-Solver-2 plain and ancestral; unscaled latents.

Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022),
algorithm 2; "DPM-Solver" (Lu et al. 2022), algorithm 1 with the geometric midpoint.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.euler import Churn, ancestral_split
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span, level_timestep, one_step_path
from sdengine.samplers.program import SamplerProgram


def heun(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program: a step and its correction by the slope at its end."""
    return _two_evaluations("heun", schedule, span, noise_schedule, options)


def dpm2(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program: the slope half-way, in log sigma, carries the whole step."""
    return _two_evaluations("dpm2", schedule, span, noise_schedule, options)


def _two_evaluations(
    name: str, schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    path = one_step_path(schedule, span, noise_schedule)
    build = ProgramBuilder(name, schedule, noise_schedule, 3, scaled=False)
    churn = Churn(path.sigma, path.t, noise_schedule, options)
    point, start, first_slope = build.r
    for k in range(path.steps):
        sigma, t = churn.level(k)
        after = float(path.sigma[k + 1])
        slope = (point - build.clean(sigma)) / sigma
        if after == 0:
            build.commit(k, t, sigma, point + slope * (after - sigma))
            continue
        reached = after if name == "heun" else float(np.sqrt(sigma * after))
        t_reached = float(path.t[k + 1])
        if name == "dpm2":
            t_reached = level_timestep(noise_schedule, reached)
        build.commit(k, t, sigma, point + slope * (reached - sigma), point, slope)
        second_slope = (point - build.clean(reached)) / reached
        mean = (first_slope + second_slope) / 2 if name == "heun" else second_slope
        x = start + mean * (after - sigma)
        build.commit(k, t_reached, reached, x + churn.noise_before(k + 1) * build.noise)
    return build.program(path, churn.noise_before(0))


def dpm2_ancestral(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the ancestral program: the step aims below the next level, fresh noise lifts it."""
    path = one_step_path(schedule, span, noise_schedule)
    build = ProgramBuilder("dpm2_a", schedule, noise_schedule, 2, scaled=False)
    point, start = build.r
    for k in range(path.steps):
        sigma = float(path.sigma[k])
        down, up = ancestral_split(sigma, path.sigma[k + 1], options)
        slope = (point - build.clean(sigma)) / sigma
        if down == 0:
            x = point + slope * (down - sigma)
            build.commit(k, path.t[k], sigma, x + up * build.noise)
            continue
        middle = float(np.sqrt(sigma * down))
        build.commit(k, path.t[k], sigma, point + slope * (middle - sigma), point)
        slope = (point - build.clean(middle)) / middle
        x = start + slope * (down - sigma)
        build.commit(k, level_timestep(noise_schedule, middle), middle, x + up * build.noise)
    return build.program(path)
