"""DPM-Solver++ of second order, multistep; latents are scaled.

Source: "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models" (Lu et al.
2022), algorithm 2, data prediction, midpoint form. The first and the last step are of first order.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.prediction import clean_from_scaled
from sdengine.samplers.program import NoiseSchedule, SamplerProgram
from sdengine.samplers.schedules import (
    karras_sigmas,
    sigmas_at,
    spaced_timesteps_after_first,
    timesteps_of,
)


def dpmpp_2m(schedule: str, steps: int, noise_schedule: NoiseSchedule) -> SamplerProgram:
    """Make the program; register 1 keeps the last estimate of the clean latents."""
    if schedule == "karras":
        table = noise_schedule.sigmas
        sigma = karras_sigmas(table[-1], table[0], steps)
        t = np.round(timesteps_of(noise_schedule, sigma))
    else:
        t = spaced_timesteps_after_first(noise_schedule, steps)
        sigma = sigmas_at(noise_schedule, t)
    alpha = 1 / np.sqrt(sigma**2 + 1)
    log_snr = -np.log(sigma)
    A, b = np.zeros((steps, 2, 2)), np.zeros((steps, 2))
    for k in range(steps):
        p, q = clean_from_scaled(noise_schedule.prediction_type, alpha[k], sigma[k] * alpha[k])
        if k == steps - 1:
            kept, newest, previous = 0.0, 1.0, 0.0  # all noise is gone: x is the clean estimate
        else:
            step = log_snr[k + 1] - log_snr[k]
            kept = sigma[k + 1] * alpha[k + 1] / (sigma[k] * alpha[k])
            newest, previous = -alpha[k + 1] * np.expm1(-step), 0.0
            if k > 0:
                # Extrapolate the estimate by half of its last change, per unit of log SNR.
                ratio = (log_snr[k] - log_snr[k - 1]) / step
                newest, previous = newest * (1 + 0.5 / ratio), -newest * 0.5 / ratio
        A[k] = [[kept + newest * p, previous], [p, 0.0]]
        b[k] = [newest * q, q]
    return SamplerProgram(
        sampler="dpmpp_2m",
        schedule=schedule,
        t=t,
        c_in=np.ones(steps),
        sigma=sigma,
        A=A,
        b=b,
        d=np.zeros((steps, 2)),
        init_scale=1.0,
    )
