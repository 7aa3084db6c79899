"""Linear multistep, fourth order Adams-Bashforth on uneven noise levels; latents are unscaled.

Source: Hairer, Norsett and Wanner, "Solving Ordinary Differential Equations I", section III.5: the
interpolation polynomial of the last slopes, integrated exactly.
"""

from __future__ import annotations

import numpy as np

from sdengine.samplers.builder import ProgramBuilder
from sdengine.samplers.noise_schedule import Float64, NoiseSchedule
from sdengine.samplers.options import SamplerOptions
from sdengine.samplers.path import one_step_path
from sdengine.samplers.program import SamplerProgram

_ORDER = 4


def lms(
    schedule: str, steps: int, noise_schedule: NoiseSchedule, options: SamplerOptions
) -> SamplerProgram:
    """Make the program; registers 1 to 3 keep the last slopes."""
    path = one_step_path(schedule, steps, noise_schedule)
    sigma = path.sigma
    build = ProgramBuilder("lms", schedule, noise_schedule, _ORDER, scaled=False)
    x, *history = build.r
    for k in range(steps):
        slopes = [(x - build.clean(sigma[k])) / sigma[k], *history[: min(k, _ORDER - 1)]]
        levels = sigma[k - len(slopes) + 1 : k + 1][::-1]
        moved = x
        for slope, weight in zip(
            slopes, integrated_basis(levels, sigma[k], sigma[k + 1]), strict=True
        ):
            moved = moved + weight * slope
        build.commit(k, path.t[k], sigma[k], moved, *slopes[: _ORDER - 1])
    return build.program(path.init_scale)


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
