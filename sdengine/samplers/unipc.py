"""UniPC: a predictor, and a corrector that reuses the next evaluation; scaled latents.

Source: "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models" (Zhao
et al. 2023), algorithms 5 and 6 in data prediction with B(h) = exp(h) - 1.
"""

from __future__ import annotations

import math

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span, multistep_path
from sdengine.samplers.program import SamplerProgram

# The most that the estimates may count without their signs in what a step makes. Where steps grow
# in lambda, a high order extrapolates far beyond the estimates, and the network reads its own
# changes enlarged: under the beta schedule pictures break up, in fp32 as in bf16. Such a step takes
# a lower order; steps of other schedules stay below the bound.
_MOST_WEIGHT = 5.0


def unipc(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program of second order."""
    return _unipc("unipc", 2, schedule, span, noise_schedule)


def unipc_3(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program of third order."""
    return _unipc("unipc_3", 3, schedule, span, noise_schedule)


def _unipc(
    name: str, order: int, schedule: str, span: Span, noise_schedule: NoiseSchedule
) -> SamplerProgram:
    path = multistep_path(schedule, span, noise_schedule)
    sigma = path.sigma
    # Register 1 is where the last step started, those after it are the last clean estimates.
    build = ProgramBuilder(name, schedule, noise_schedule, 2 + order, scaled=True)
    x, start, *history = build.r
    last_order = 0
    for k in range(path.steps):
        clean = build.clean(sigma[k])
        corrected = x
        if k > 0:
            corrected = _correct(sigma[: k + 1], start, history[:last_order], clean)
        last_order = min(order, path.steps - k, k + 1)
        estimates = [clean, *history[: order - 1]]
        while last_order > 1 and _weight(sigma[: k + 2], last_order) > _MOST_WEIGHT:
            last_order -= 1
        predicted = _predict(sigma[: k + 2], corrected, estimates[:last_order])
        build.commit(k, path.t[k], sigma[k], predicted, corrected, *estimates)
    return build.program(path)


def _weight(sigma: Float64, order: int) -> float:
    """Return what the estimates count without their signs in a step to the last of the levels."""
    moved = _predict(sigma, np.zeros(order), list(np.eye(order)))
    return float(np.abs(moved).sum() * np.sqrt(sigma[-1] ** 2 + 1))


def _predict(sigma: Float64, x: Float64, estimates: list[Float64]) -> Float64:
    """Step to the last of the levels from the one before it; estimates are newest first."""
    if sigma[-1] == 0:
        return estimates[0]
    order = len(estimates)
    h, ratios, system, right = _moments(sigma, order)
    weights = [0.5] if order == 2 else _solve(system[:-1, :-1], right[:-1])
    changes = [(e - estimates[0]) / r for e, r in zip(estimates[1:], ratios[:-1], strict=True)]
    return _advance(sigma, x, estimates[0], h, list(zip(weights, changes, strict=False)))


def _correct(sigma: Float64, start: Float64, estimates: list[Float64], clean: Float64) -> Float64:
    """Step to the last of the levels again, now that its own estimate is known."""
    order = len(estimates)
    h, ratios, system, right = _moments(sigma, order)
    weights = [0.5] if order == 1 else _solve(system, right)
    changes = [(e - estimates[0]) / r for e, r in zip(estimates[1:], ratios[:-1], strict=True)]
    changes.append(clean - estimates[0])
    return _advance(sigma, start, estimates[0], h, list(zip(weights, changes, strict=True)))


def _advance(
    sigma: Float64, x: Float64, clean: Float64, h: float, terms: list[tuple[float, Float64]]
) -> Float64:
    alpha, alpha_after = 1 / np.sqrt(sigma[-2:] ** 2 + 1)
    shrink = np.expm1(-h)
    moved = sigma[-1] * alpha_after / (sigma[-2] * alpha) * x - alpha_after * shrink * clean
    for weight, change in terms:
        moved = moved - alpha_after * shrink * weight * change
    return np.asarray(moved)


def _moments(sigma: Float64, order: int) -> tuple[float, list[float], Float64, list[float]]:
    """Return the step in lambda, the places of the estimates in it, and the moment equations.

    Source: Zhao et al. 2023, equation 6: powers of the places times the weights are
    phi_{n+1}(h) n! / B(h).
    """
    levels = -np.log(sigma)
    h = float(levels[-1] - levels[-2])
    ratios = [float((levels[-2 - i] - levels[-2]) / h) for i in range(1, order)] + [1.0]
    system = np.vander(np.array(ratios), increasing=True).T
    right = []
    phi = np.expm1(-h) / -h - 1
    for n in range(1, order + 1):
        right.append(float(phi * math.factorial(n) / np.expm1(-h)))
        phi = phi / -h - 1 / math.factorial(n + 1)
    return h, ratios, system, right


def _solve(system: Float64, right: list[float]) -> list[float]:
    return [float(weight) for weight in np.linalg.solve(system, np.array(right))]
