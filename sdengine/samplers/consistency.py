"""Samplers of distilled consistency models: LCM and TCD; latents are scaled.

Source: "Latent Consistency Models" (Luo et al. 2023), algorithm 3 and section 4.3; "Trajectory
Consistency Distillation" (Zheng et al. 2024), algorithm 4.
"""

from __future__ import annotations

import numpy as np

from sdengine.errors import ConfigError
from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.ddim import Stops, ddim_stops
from sdengine.samplers.noise_schedule import NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span
from sdengine.samplers.program import SamplerProgram

_SIGMA_DATA = 0.5


def lcm(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program: each step jumps to the clean estimate and noises it afresh."""
    stops = _stops("lcm", schedule, span, noise_schedule)
    build = ProgramBuilder("lcm", schedule, noise_schedule, 1, scaled=True)
    for k in range(stops.steps):
        scaled_t = stops.t[k] * noise_schedule.timestep_scaling
        total = scaled_t**2 + _SIGMA_DATA**2
        skip, out = _SIGMA_DATA**2 / total, scaled_t / np.sqrt(total)
        x = out * build.clean(stops.sigma[k]) + skip * build.r[0]
        if k < stops.steps - 1:
            after = stops.signal_after[k]
            x = np.sqrt(after) * x + np.sqrt(1 - after) * build.noise
        build.commit(k, stops.t[k], stops.sigma[k], x)
    return build.program(stops)


def tcd(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program: each step goes below the next level by eta, and is noised back.

    The paper calls eta gamma. It is 0.3 if not given, as in diffusers' TCDScheduler; diffusers'
    StableDiffusionPipeline passes 0 unless it is told otherwise.
    """
    eta = 0.3 if options.eta is None else options.eta
    stops = _stops("tcd", schedule, span, noise_schedule)
    table = noise_schedule.alphas_cumprod
    build = ProgramBuilder("tcd", schedule, noise_schedule, 1, scaled=True)
    for k in range(stops.steps):
        is_last = k == stops.steps - 1
        t_after = 0.0 if is_last else float(stops.t[k + 1])
        below = float(np.interp((1 - eta) * t_after, np.arange(len(table)), table))
        if float(stops.t[k]).is_integer() and t_after.is_integer():
            below = float(table[int((1 - eta) * t_after)])
        signal = stops.signal[k]
        clean = build.clean(stops.sigma[k])
        noise = (build.r[0] - np.sqrt(signal) * clean) / np.sqrt(1 - signal)
        x = np.sqrt(below) * clean + np.sqrt(1 - below) * noise
        if eta > 0 and not is_last:
            kept = min(stops.signal_after[k] / below, 1.0)
            x = np.sqrt(kept) * x + np.sqrt(1 - kept) * build.noise
        build.commit(k, stops.t[k], stops.sigma[k], x)
    return build.program(stops)


def _stops(name: str, schedule: str, span: Span, noise_schedule: NoiseSchedule) -> Stops:
    steps = span.steps
    if schedule != "normal":
        return ddim_stops(schedule, span, noise_schedule)
    total = noise_schedule.num_train_timesteps
    trained = noise_schedule.original_inference_steps
    if steps > trained:
        raise ConfigError.for_field(
            "steps",
            steps,
            f"at most {trained} for sampler {name} with schedule normal, the steps that "
            "distillation knows",
            "Take another schedule for more.",
        )
    known = (np.arange(1, trained + 1) * (total // trained) - 1)[::-1]
    places = np.floor(np.linspace(0, trained, steps, endpoint=False)).astype(int)
    t = known[places]
    signal = noise_schedule.alphas_cumprod[t]
    return Stops(t.astype(float), signal, np.append(signal[1:], 1.0)).cut(span)
