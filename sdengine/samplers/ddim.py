"""DDIM without added noise.

Source: "Denoising Diffusion Implicit Models" (Song et al. 2021), equation 12 with eta = 0.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.prediction import clean_from_scaled, noise_from_scaled
from sdengine.samplers.program import Float64, NoiseSchedule, SamplerProgram
from sdengine.samplers.schedules import karras_sigmas, spaced_timesteps, timesteps_of


def ddim(schedule: str, steps: int, noise_schedule: NoiseSchedule) -> SamplerProgram:
    """Make the program; under "karras" it stops at those noise levels and ends without noise."""
    if schedule == "karras":
        table = noise_schedule.sigmas
        sigmas = karras_sigmas(table[-1], table[0], steps)
        t = timesteps_of(noise_schedule, sigmas)
        signal = 1 / (sigmas**2 + 1)
        signal_after = np.append(signal[1:], 1.0)
    else:
        t = spaced_timesteps(noise_schedule, steps, rounded=True)
        signal = noise_schedule.alphas_cumprod[t.astype(int)]
        signal_after = _signal_after(t, steps, noise_schedule)
    A, b = np.empty((steps, 1, 1)), np.empty((steps, 1))
    for k in range(steps):
        alpha, sigma_hat = np.sqrt(signal[k]), np.sqrt(1 - signal[k])
        x0 = clean_from_scaled(noise_schedule.prediction_type, alpha, sigma_hat)
        noise = noise_from_scaled(noise_schedule.prediction_type, alpha, sigma_hat)
        alpha_after, sigma_hat_after = np.sqrt(signal_after[k]), np.sqrt(1 - signal_after[k])
        A[k, 0, 0] = alpha_after * x0[0] + sigma_hat_after * noise[0]
        b[k, 0] = alpha_after * x0[1] + sigma_hat_after * noise[1]
    return SamplerProgram(
        sampler="ddim",
        schedule=schedule,
        t=t,
        c_in=np.ones(steps),
        sigma=np.sqrt((1 - signal) / signal),
        A=A,
        b=b,
        d=np.zeros((steps, 1)),
        init_scale=1.0,
    )


def _signal_after(t: Float64, steps: int, noise_schedule: NoiseSchedule) -> Float64:
    # A whole stride back from each timestep, as the published scheduler does for any spacing.
    before = (t - noise_schedule.num_train_timesteps // steps).astype(int)
    last = 1.0 if noise_schedule.set_alpha_to_one else noise_schedule.alphas_cumprod[0]
    return np.where(before >= 0, noise_schedule.alphas_cumprod[np.maximum(before, 0)], last)
