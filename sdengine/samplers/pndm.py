"""PNDM without Runge-Kutta steps, known as PLMS: fourth order in the noise estimate.

Source: "Pseudo Numerical Methods for Diffusion Models on Manifolds" (Liu et al. 2022), equations 9
and 12, with the warm-up of the published latent diffusion sampler: the second step is repeated from
the first one's start with the mean of both slopes.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.ddim import Stops, ddim_stops
from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span
from sdengine.samplers.program import SamplerProgram

# Adams-Bashforth weights of the newest estimate and those before it, by how many there are.
_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def pndm(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program; it evaluates the network once more than it has steps.

    Registers 1 to 3 keep the last noise estimates, register 4 where the first step started.
    """
    stops = ddim_stops(schedule, span, noise_schedule)
    build = ProgramBuilder("pndm", schedule, noise_schedule, 5, scaled=True)
    x, *history, start = build.r
    for k in range(stops.steps):
        t, sigma = float(stops.t[k]), float(stops.sigma[k])
        noise = (x - np.sqrt(stops.signal[k]) * build.clean(sigma)) / np.sqrt(1 - stops.signal[k])
        if k == 1:
            # The slope where step 0 ended corrects step 0; then its end is evaluated again.
            corrected = _transfer(stops, 0, start, (noise + history[0]) / 2)
            build.commit(1, t, sigma, corrected, history[0])
        estimates = [noise, *history[: min(k, 3)]]
        guess: Float64 = build.zero
        for weight, estimate in zip(_WEIGHTS[len(estimates) - 1], estimates, strict=True):
            guess = guess + weight * estimate
        kept = [*estimates, build.zero, build.zero][:3]
        build.commit(k, t, sigma, _transfer(stops, k, x, guess), *kept, x)
    return build.program(stops)


def _transfer(stops: Stops, k: int, x: Float64, noise: Float64) -> Float64:
    """Move scaled latents to the next level along a noise estimate."""
    signal, after = stops.signal[k], stops.signal_after[k]
    kept = np.sqrt(after / signal)
    return np.asarray(kept * x + (np.sqrt(1 - after) - kept * np.sqrt(1 - signal)) * noise)
