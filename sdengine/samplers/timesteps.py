"""Timesteps: those of the noise schedule at which a sampler stops, and their noise levels."""

from __future__ import annotations

import numpy as np

from sdengine.samplers.noise_schedule import Float64, NoiseSchedule


def spaced_timesteps(noise_schedule: NoiseSchedule, steps: int, *, rounded: bool) -> Float64:
    """Spread steps over the training timesteps, from noisy to clean.

    Args:
        noise_schedule: gives the number of timesteps, the spacing and its offset.
        steps: how many.
        rounded: round "linspace" to whole timesteps (the other spacings always are).

    Source: "Common Diffusion Noise Schedules and Sample Steps are Flawed" (Lin et al. 2023),
    table 2.
    """
    total = noise_schedule.num_train_timesteps
    if noise_schedule.timestep_spacing == "linspace":
        t = np.linspace(0, total - 1, steps)[::-1]
        return np.round(t) if rounded else t.copy()
    if noise_schedule.timestep_spacing == "trailing":
        return np.round(total - np.arange(steps) * (total / steps)) - 1
    t = np.arange(steps, dtype=np.float64)[::-1] * (total // steps) + noise_schedule.steps_offset
    # The offset would lead past the last timestep when every timestep is used.
    return np.minimum(t, total - 1)


def spaced_timesteps_after_first(noise_schedule: NoiseSchedule, steps: int) -> Float64:
    """Spread one step more than asked and leave out the cleanest, as multistep solvers do.

    With so many steps that whole timesteps would repeat or lead past the last one, the whole range
    is divided evenly instead, in fractions where need be.
    """
    total = noise_schedule.num_train_timesteps
    if noise_schedule.timestep_spacing == "trailing":
        return spaced_timesteps(noise_schedule, steps, rounded=True)
    stride, offset = total // (steps + 1), noise_schedule.steps_offset
    fits = stride > 0 and steps * stride + offset < total
    if noise_schedule.timestep_spacing == "leading" and fits:
        return np.arange(steps, 0, -1, dtype=np.float64) * stride + offset
    t = np.linspace(0, total - 1, steps + 1)[::-1][:-1]
    return np.round(t) if steps < total else t.copy()


def sigmas_at(noise_schedule: NoiseSchedule, timesteps: Float64) -> Float64:
    """Return the noise level at each timestep, interpolated between whole ones."""
    sigmas = noise_schedule.sigmas
    return np.interp(timesteps, np.arange(len(sigmas)), sigmas)


def timesteps_of(noise_schedule: NoiseSchedule, sigmas: Float64) -> Float64:
    """Return the fractional timestep of each noise level, interpolated in log sigma."""
    table = np.log(noise_schedule.sigmas)
    return np.interp(np.log(sigmas), table, np.arange(len(table)))
