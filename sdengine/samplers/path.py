"""Path of a trajectory: the noise levels where it stops, their timesteps, its start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.sigmas import curve_sigmas
from sdengine.samplers.timesteps import (
    sigmas_at,
    spaced_timesteps,
    spaced_timesteps_after_first,
    timesteps_of,
)


@dataclass(frozen=True)
class Span:
    """The steps of a schedule that run: all of them, or the last ones.

    Args:
        steps: of the whole schedule.
        first: the first that runs; what comes before it is as if it never was.
        from_picture: the trajectory starts from noised latents of a picture, else from noise.
    """

    steps: int
    first: int = 0
    from_picture: bool = False


@dataclass(frozen=True)
class Path:
    """The stops of a trajectory.

    Args:
        sigma: [steps+1] noise levels relative to the signal, the last one 0.
        t: [steps] timesteps of all but the last.
        init_scale: latents that start from noise are this times unit noise.
        from_picture: as in `Span`.
    """

    sigma: Float64
    t: Float64
    init_scale: float
    from_picture: bool = False

    @property
    def steps(self) -> int:
        """The number of steps that run."""
        return len(self.t)

    def cut(self, span: Span) -> Path:
        """Return the stops of the steps that run."""
        first = span.first
        return Path(self.sigma[first:], self.t[first:], self.init_scale, span.from_picture)


def one_step_path(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, *, repeats: bool = False
) -> Path:
    """Return the stops of samplers that look at one interval at a time.

    Curves go from the first to the last level of the plain spacing, as the published schedulers do.

    Args:
        schedule, noise_schedule: as for `build_program`.
        span: the steps that run.
        repeats: keep a timestep that the plain spacing repeats, as it does when there are as many
            steps as timesteps; else the steps are spread evenly then.
    """
    steps = span.steps
    t = spaced_timesteps(noise_schedule, steps, rounded=False)
    if not repeats and (np.diff(t) == 0).any():
        t = np.linspace(noise_schedule.num_train_timesteps - 1, 0, steps)
    sigma = sigmas_at(noise_schedule, t)
    if schedule != "normal":
        sigma = curve_sigmas(schedule, steps, noise_schedule, sigma[0], sigma[-1])
        t = timesteps_of(noise_schedule, sigma)
    largest = float(sigma.max())
    from_pure_noise = noise_schedule.timestep_spacing in ("linspace", "trailing")
    # "leading" starts below the last timestep, where the signal's variance still counts.
    init_scale = largest if from_pure_noise else float(np.sqrt(largest**2 + 1))
    return Path(np.append(sigma, 0.0), t, init_scale).cut(span)


def multistep_path(schedule: str, span: Span, noise_schedule: NoiseSchedule) -> Path:
    """Return the stops of samplers that remember earlier intervals; curves span all levels."""
    steps = span.steps
    if schedule == "normal":
        t = spaced_timesteps_after_first(noise_schedule, steps)
        sigma = sigmas_at(noise_schedule, t)
    else:
        table = noise_schedule.sigmas
        sigma = curve_sigmas(schedule, steps, noise_schedule, table[-1], table[0])
        t = np.round(timesteps_of(noise_schedule, sigma))
    return Path(np.append(sigma, 0.0), t, 1.0).cut(span)


def level_timestep(noise_schedule: NoiseSchedule, sigma: float) -> float:
    """Return the fractional timestep of one noise level; beyond the table, that of its end."""
    return float(timesteps_of(noise_schedule, np.array([sigma]))[0])
