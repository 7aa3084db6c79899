"""Linear multistep, up to fourth order Adams-Bashforth on uneven levels; latents are unscaled.

Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", section III.5: the
interpolation polynomial of the last slopes, integrated exactly.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import Span, one_step_path
from sdengine.samplers.program import SamplerProgram

_ORDER = 4
# The most that a step's weights may sum up to without their signs, over its length. On even levels
# it is 20/3. A step much longer than those before it extrapolates far beyond their slopes, so that
# the rounding of the network's output grows with the fourth power of the ratio: such a step takes
# fewer slopes. The last one, from sigma_min to 0, is that long where schedules are dense.
_MOST_WEIGHT = 48.0


def lms(
    schedule: str, span: Span, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program; registers 1 to 3 keep the last slopes."""
    path = one_step_path(schedule, span, noise_schedule)
    sigma = path.sigma
    build = ProgramBuilder("lms", schedule, noise_schedule, _ORDER, scaled=False)
    x, *history = build.r
    for k in range(path.steps):
        slopes = [(x - build.clean(sigma[k])) / sigma[k], *history[: min(k, _ORDER - 1)]]
        levels = sigma[k - len(slopes) + 1 : k + 1][::-1]
        moved = x
        for slope, weight in zip(slopes, stable_weights(levels, sigma[k + 1]), strict=False):
            moved = moved + weight * slope
        build.commit(k, path.t[k], sigma[k], moved, *slopes[: _ORDER - 1])
    return build.program(path)


def stable_weights(levels: Float64, end: float) -> list[float]:
    """Return the weights of the newest slopes, of as high an order as rounding allows.

    Args:
        levels: where the slopes were taken, the newest first; the step starts there.
        end: where the step ends.
    """
    length = abs(end - levels[0])
    for order in range(len(levels), 0, -1):
        weights = integrated_basis(levels[:order], levels[0], end)
        if sum(map(abs, weights)) <= _MOST_WEIGHT * length:
            break
    return weights


def integrated_basis(nodes: Float64, start: float, end: float) -> list[float]:
    """Integrate each Lagrange basis polynomial of the nodes from start to end."""
    if len(nodes) == 1:
        return [float(end - start)]
    # In units of the nodes' span around the start, where the polynomials are well conditioned.
    unit = max(float(np.abs(nodes - start).max()), abs(end - start))
    places = (nodes - start) / unit
    weights = []
    for j, own in enumerate(places):
        others = np.delete(places, j)
        basis = np.polynomial.Polynomial.fromroots(others) / np.prod(own - others)
        integral = basis.integ()
        weights.append(float(unit * (integral((end - start) / unit) - integral(0.0))))
    return weights
