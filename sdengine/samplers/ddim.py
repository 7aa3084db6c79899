"""DDIM, with fresh noise as eta asks, and DDPM, which is eta 1 down to no noise at all.

Source: "Denoising Diffusion Implicit Models" (Song et al. 2021), equations 12 and 16; "Denoising
Diffusion Probabilistic Models" (Ho et al. 2020), equation 7. Latents are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span
from sdengine.samplers.program import SamplerProgram
from sdengine.samplers.sigmas import curve_sigmas
from sdengine.samplers.timesteps import spaced_timesteps, timesteps_of


@dataclass(frozen=True)
class Stops:
    """Where a trajectory of scaled latents stops.

    Args:
        t: [steps] timesteps.
        signal, signal_after: [steps] share of the signal's variance before and after each step.
        from_picture, init_scale: as in `Path`.
    """

    t: Float64
    signal: Float64
    signal_after: Float64
    from_picture: bool = False
    init_scale: float = 1.0

    @property
    def steps(self) -> int:
        """The number of steps that run."""
        return len(self.t)

    @property
    def sigma(self) -> Float64:
        """Noise levels [steps] relative to the signal."""
        return np.asarray(np.sqrt((1 - self.signal) / self.signal))

    def cut(self, span: Span) -> Stops:
        """Return the stops of the steps that run."""
        first = span.first
        signals = self.signal[first:], self.signal_after[first:]
        return Stops(self.t[first:], *signals, from_picture=span.from_picture)


def ddim_stops(schedule: str, span: Span, noise_schedule: NoiseSchedule) -> Stops:
    """Return the stops; under schedules other than "normal" the last step ends without noise."""
    steps = span.steps
    if schedule == "normal":
        t = spaced_timesteps(noise_schedule, steps, rounded=True)
        signal = noise_schedule.alphas_cumprod[t.astype(int)]
        return Stops(t, signal, _signal_after(t, steps, noise_schedule)).cut(span)
    table = noise_schedule.sigmas
    sigmas = curve_sigmas(schedule, steps, noise_schedule, table[-1], table[0])
    signal = 1 / (sigmas**2 + 1)
    t = timesteps_of(noise_schedule, sigmas)
    return Stops(t, signal, np.append(signal[1:], 1.0)).cut(span)


def ddim(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program; eta defaults to 0."""
    return _program("ddim", schedule, span, noise_schedule, options.eta or 0.0)


def ddpm(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the ancestral program of the original paper."""
    ending = replace(noise_schedule, set_alpha_to_one=True)
    return _program("ddpm", schedule, span, ending, 1.0)


def _program(
    name: str, schedule: str, span: Span, noise_schedule: NoiseSchedule, eta: float
) -> SamplerProgram:
    stops = ddim_stops(schedule, span, noise_schedule)
    build = ProgramBuilder(name, schedule, noise_schedule, 1, scaled=True)
    for k in range(stops.steps):
        signal, after = float(stops.signal[k]), float(stops.signal_after[k])
        clean = build.clean(float(stops.sigma[k]))
        noise = (build.r[0] - np.sqrt(signal) * clean) / np.sqrt(1 - signal)
        fresh = eta * np.sqrt(max((1 - after) / (1 - signal) * (1 - signal / after), 0.0))
        direction = np.sqrt(max(1 - after - fresh**2, 0.0))
        x = np.sqrt(after) * clean + direction * noise + fresh * build.noise
        build.commit(k, float(stops.t[k]), float(stops.sigma[k]), x)
    return build.program(stops)


def _signal_after(t: Float64, steps: int, noise_schedule: NoiseSchedule) -> Float64:
    # A whole stride back from each timestep, as the published scheduler does for any spacing.
    before = (t - noise_schedule.num_train_timesteps // steps).astype(int)
    last = 1.0 if noise_schedule.set_alpha_to_one else noise_schedule.alphas_cumprod[0]
    return np.where(before >= 0, noise_schedule.alphas_cumprod[np.maximum(before, 0)], last)
