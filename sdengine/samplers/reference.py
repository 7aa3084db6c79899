"""Reference sampler: a program's steps in NumPy, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from sdengine.samplers.noise_schedule import Float64
from sdengine.samplers.program import SamplerProgram

Denoiser = Callable[[npt.NDArray[Any], float], npt.NDArray[Any]]


def run_step_reference(
    registers: npt.NDArray[Any],
    noise_pred: npt.NDArray[Any],
    guidance_scale: float,
    A: Float64,
    b: Float64,
    d: Float64,
    noise: npt.NDArray[Any] | None,
) -> bool:
    """Apply one step in NumPy: the reference of the native kernel.

    Args:
        registers: [R,B,...], updated in place.
        noise_pred: [2B,...], unconditional rows first, or [B,...] without guidance.
        guidance_scale: used only with 2B rows.
        A, b, d: [R,R], [R], [R].
        noise: [B,...], or None when d is zero.

    Returns:
        Whether every new value is finite.
    """
    batch = registers.shape[1]
    m = noise_pred
    if len(noise_pred) == 2 * batch:
        m = noise_pred[:batch] + guidance_scale * (noise_pred[batch:] - noise_pred[:batch])
    updated = np.tensordot(A, registers, axes=1) + np.multiply.outer(b, m)
    if noise is not None:
        updated += np.multiply.outer(d, noise)
    registers[:] = updated
    return bool(np.isfinite(registers).all())


def sample_reference(
    program: SamplerProgram,
    denoiser: Denoiser,
    initial_noise: npt.NDArray[Any],
    step_noise: Callable[[int], npt.NDArray[Any]] | None = None,
) -> list[npt.NDArray[np.float64]]:
    """Run a whole program in float64 without guidance.

    Args:
        program: the sampler.
        denoiser: maps (scaled latents, timestep) to the network's output.
        initial_noise: [B,...] unit noise.
        step_noise: unit noise of evaluation k, needed where program.needs_noise says so; of
            evaluation -1 for the second noise of the start.

    Returns:
        r[0] after each evaluation.
    """
    registers = np.zeros((program.num_registers, *initial_noise.shape))
    registers[0] = initial_noise * program.init_scale
    if program.init_noise and step_noise is not None:
        registers[0] += program.init_noise * step_noise(-1)
    trajectory = []
    for k, needs_noise in enumerate(program.needs_noise):
        output = denoiser(program.c_in[k] * registers[0], float(program.t[k]))
        noise = step_noise(k) if needs_noise and step_noise is not None else None
        run_step_reference(registers, output, 1.0, program.A[k], program.b[k], program.d[k], noise)
        trajectory.append(registers[0].copy())
    return trajectory
