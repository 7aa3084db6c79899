"""Euler's method on the probability-flow equation, plain and ancestral; latents are unscaled.

Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al. 2022),
algorithm 1 without the second-order correction; the ancestral split of the noise is that of
"Denoising Diffusion Probabilistic Models" (Ho et al. 2020) at eta = 1.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.prediction import clean_from_unscaled
from sdengine.samplers.program import Float64, NoiseSchedule, SamplerProgram
from sdengine.samplers.schedules import karras_sigmas, sigmas_at, spaced_timesteps, timesteps_of


def euler(schedule: str, steps: int, noise_schedule: NoiseSchedule) -> SamplerProgram:
    """Make the deterministic program."""
    return _program("euler", schedule, steps, noise_schedule, ancestral=False)


def euler_ancestral(schedule: str, steps: int, noise_schedule: NoiseSchedule) -> SamplerProgram:
    """Make the ancestral program: each step but the last adds fresh noise."""
    return _program("euler_a", schedule, steps, noise_schedule, ancestral=True)


def _program(
    name: str, schedule: str, steps: int, noise_schedule: NoiseSchedule, *, ancestral: bool
) -> SamplerProgram:
    t = spaced_timesteps(noise_schedule, steps, rounded=False)
    sigma = sigmas_at(noise_schedule, t)
    if schedule == "karras":
        # Between the first and the last level of the plain spacing, as the published scheduler.
        sigma = karras_sigmas(sigma[0], sigma[-1], steps)
        t = timesteps_of(noise_schedule, sigma)
    sigma_after = np.append(sigma[1:], 0.0)
    sigma_down, sigma_up = _ancestral_split(sigma, sigma_after, ancestral)
    A, b = np.empty((steps, 1, 1)), np.empty((steps, 1))
    for k in range(steps):
        p, q = clean_from_unscaled(noise_schedule.prediction_type, sigma[k])
        # x' = x0 + (x - x0) * ratio: noise shrinks to the next level along the derivative.
        ratio = sigma_down[k] / sigma[k]
        A[k, 0, 0] = ratio + (1 - ratio) * p
        b[k, 0] = (1 - ratio) * q
    largest = float(sigma.max())
    from_pure_noise = noise_schedule.timestep_spacing in ("linspace", "trailing")
    return SamplerProgram(
        sampler=name,
        schedule=schedule,
        t=t,
        c_in=1 / np.sqrt(sigma**2 + 1),
        sigma=sigma,
        A=A,
        b=b,
        d=sigma_up[:, None],
        # "leading" starts below the last timestep, where the signal's variance still counts.
        init_scale=largest if from_pure_noise else float(np.sqrt(largest**2 + 1)),
    )


def _ancestral_split(
    sigma: Float64, sigma_after: Float64, ancestral: bool
) -> tuple[Float64, Float64]:
    """Split the next level into what is kept and what is added afresh."""
    if not ancestral:
        return sigma_after, np.zeros_like(sigma)
    up = np.sqrt(sigma_after**2 * (sigma**2 - sigma_after**2) / sigma**2)
    return np.sqrt(sigma_after**2 - up**2), up
