"""Sigmas: noise levels by a schedule's name, from noisy to clean, without the zero at the end."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.timesteps import sigmas_at

_KARRAS_RHO = 7.0
_BETA_SHAPE = 0.6
# Of beta_quantile: of its continued fraction and its bisection.
_TERMS = 30
_HALVINGS = 60
_TINY = 1e-300


@dataclass(frozen=True)
class Range:
    """What a schedule spreads levels over.

    Args:
        noise_schedule: of the checkpoint.
        steps: how many levels.
        sigma_max, sigma_min: the first and the last of them, for schedules that are curves.
    """

    noise_schedule: NoiseSchedule
    steps: int
    sigma_max: float
    sigma_min: float

    @property
    def ramp(self) -> Float64:
        """The steps' places from 0, noisiest, to 1, cleanest."""
        return np.linspace(0, 1, self.steps)


def karras(over: Range) -> Float64:
    """Place levels closer together the cleaner the latents are.

    Source: "Elucidating the Design Space of Diffusion-Based Generative Models" (Karras et al.
    2022), equation 5 with rho = 7.
    """
    high, low = over.sigma_max ** (1 / _KARRAS_RHO), over.sigma_min ** (1 / _KARRAS_RHO)
    sigmas: Float64 = (high + over.ramp * (low - high)) ** _KARRAS_RHO
    return sigmas


def exponential(over: Range) -> Float64:
    """Space levels evenly in log sigma."""
    span = np.log(over.sigma_min / over.sigma_max)
    sigmas: Float64 = np.exp(np.log(over.sigma_max) + over.ramp * span)
    return sigmas


def polyexponential(over: Range) -> Float64:
    """Space levels in log sigma with a ramp to the power of rho, here 1.5.

    Source: k-diffusion's polyexponential schedule, whose rho of 1 is the exponential one.
    """
    ramp = (1 - over.ramp) ** 1.5
    span = np.log(over.sigma_max / over.sigma_min)
    sigmas: Float64 = np.exp(np.log(over.sigma_min) + ramp * span)
    return sigmas


def beta(over: Range) -> Float64:
    """Space levels by quantiles of a beta distribution: dense at both ends.

    Source: "Beta Sampling is All You Need" (Lee et al. 2024), with both shapes 0.6.
    """
    quantiles = beta_quantile(1 - over.ramp, _BETA_SHAPE, _BETA_SHAPE)
    sigmas: Float64 = over.sigma_min + quantiles * (over.sigma_max - over.sigma_min)
    return sigmas


def beta_quantile(probability: Float64, a: float, b: float) -> Float64:
    """Return x in [0,1] with I_x(a, b) = probability, elementwise to about 1e-14.

    Args:
        probability: in [0,1].
        a, b: positive shapes.

    Source: the regularised incomplete beta function's continued fraction, NIST Digital Library of
    Mathematical Functions, 8.17.22; its inverse by bisection.
    """
    low, high = np.zeros_like(probability), np.ones_like(probability)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        is_below = _incomplete_beta(middle, a, b) < probability
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    middle = (low + high) / 2
    ends: Float64 = np.where(probability <= 0, 0.0, np.where(probability >= 1, 1.0, middle))
    return ends


def _incomplete_beta(x: Float64, a: float, b: float) -> Float64:
    # The fraction converges fast below the mean; above it, the symmetry I_x(a,b) = 1 - I_1-x(b,a).
    swap = x > (a + 1) / (a + b + 2)
    left = _fraction_side(np.where(swap, 0.0, x), a, b)
    right = 1 - _fraction_side(np.where(swap, 1 - x, 0.0), b, a)
    return np.where(swap, right, left)


def _fraction_side(x: Float64, a: float, b: float) -> Float64:
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    with np.errstate(divide="ignore"):
        front = np.exp(a * np.log(x) + b * np.log1p(-x) - log_beta) / a
    # Lentz's evaluation of 1 / (1 + d1 / (1 + d2 / (1 + ...))).
    c = np.ones_like(x)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            value = value * c * d
    result: Float64 = front * value
    return result


def _away_from_zero(x: Float64) -> Float64:
    return np.where(np.abs(x) < _TINY, _TINY, x)


def simple(over: Range) -> Float64:
    """Take levels of the training schedule at equal distances, from the noisiest on."""
    total = over.noise_schedule.num_train_timesteps
    places = (np.arange(over.steps) * (total / over.steps)).astype(int)
    return np.asarray(over.noise_schedule.sigmas[total - 1 - places])


def sgm_uniform(over: Range) -> Float64:
    """Spread timesteps evenly and leave out the cleanest.

    Source: the discretization of the sampling code published with "SDXL" (Podell et al. 2023).
    """
    total = over.noise_schedule.num_train_timesteps
    t = np.linspace(total - 1, 0, over.steps + 1)[:-1]
    return sigmas_at(over.noise_schedule, t)


def ddim_uniform(over: Range) -> Float64:
    """Take timesteps 1, 1 + s, 1 + 2 s, ... with a whole stride s.

    Source: "Denoising Diffusion Implicit Models" (Song et al. 2021), appendix D.2, "linear".
    """
    total = over.noise_schedule.num_train_timesteps
    t = np.arange(over.steps, dtype=np.float64)[::-1] * (total // over.steps)
    offset = 1 if t[0] + 1 < total else 0  # as many steps as timesteps leave no room for it
    return sigmas_at(over.noise_schedule, t + offset)


# Source: "Align Your Steps" (Sabour et al. 2024), the published levels for ten steps.
_AYS_SD1 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def align_your_steps(over: Range) -> Float64:
    """Take the levels that were optimised for Stable Diffusion 1."""
    return _interpolated(_AYS_SD1, over)


def align_your_steps_sdxl(over: Range) -> Float64:
    """Take the levels that were optimised for SDXL."""
    return _interpolated(_AYS_SDXL, over)


def _interpolated(levels: tuple[float, ...], over: Range) -> Float64:
    # The last of the published levels gives way to zero.
    places = np.linspace(0, len(levels) - 1, over.steps + 1)[:-1]
    return np.exp(np.interp(places, np.arange(len(levels)), np.log(levels)))


CURVES: dict[str, Callable[[Range], Float64]] = {
    "karras": karras,
    "exponential": exponential,
    "polyexponential": polyexponential,
    "beta": beta,
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "ddim_uniform": ddim_uniform,
    "align_your_steps": align_your_steps,
    "align_your_steps_sdxl": align_your_steps_sdxl,
}


def curve_sigmas(
    schedule: str, steps: int, noise_schedule: NoiseSchedule, sigma_max: float, sigma_min: float
) -> Float64:
    """Return [steps] levels of a schedule other than "normal".

    Args:
        schedule, steps, noise_schedule: as for `build_program`.
        sigma_max, sigma_min: the ends of a curve where the checkpoint names none of its own.
    """
    own_max, own_min = noise_schedule.sigma_max, noise_schedule.sigma_min
    high = sigma_max if own_max is None else own_max
    low = sigma_min if own_min is None else own_min
    return CURVES[schedule](Range(noise_schedule, steps, high, low))
