"""The native runtime on the CPU device with a network that is a Python function over arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sdengine import _native
from sdengine.samplers import SAMPLERS, NoiseSchedule, SamplerProgram, build_program

Array = np.ndarray[Any, np.dtype[Any]]
Network = Callable[[Array, Array, Array], object]

SHAPE = (2, 4, 5, 6)
MAX_STEPS, MAX_REGISTERS = 40, 8
SCHEDULE = NoiseSchedule.from_config(
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
)


def predict(sample: Array, timestep: Array, noise_pred: Array) -> None:
    """Stand for a U-Net: the second half of a guided batch differs from the first."""
    rows = np.arange(len(sample)).reshape(-1, 1, 1, 1) // SHAPE[0]
    t = timestep.reshape(-1, 1, 1, 1)
    noise_pred[:] = 0.2 * np.tanh(sample) * (1 + 0.5 * rows) + 1e-4 * t


class Server:
    """A pool, a cache and one trajectory."""

    def __init__(self, network: Network = predict, copies: int = 1, max_graphs: int = 2) -> None:
        regions = _native.trajectory_regions(SHAPE, copies, MAX_STEPS, MAX_REGISTERS)
        self.device = _native.CpuDevice()
        self.pool = _native.MemoryPool({"set": regions}, device=self.device)
        self.graphs = _native.GraphCache(self.pool, max_graphs)
        self.recordings = 0
        self.trajectory = self.desk(network, copies)

    def desk(
        self, network: Network, copies: int = 1, name: str = "unet", captured: bool = True
    ) -> _native.Trajectory:
        rows = (copies * SHAPE[0], *SHAPE[1:])
        sample = self.pool.view("set", "sample", rows, "float32", writeable=False)
        timestep = self.pool.view("set", "timestep", rows[:1], "float32", writeable=False)
        noise_pred = self.pool.view("set", "noise_pred", rows, "float32")

        def record(stream: int) -> None:
            self.recordings += 1
            self.device.enqueue(stream, lambda: network(sample, timestep, noise_pred))

        return _native.Trajectory(
            self.pool,
            "set",
            self.graphs,
            (name, SHAPE[0], *SHAPE[2:], ""),
            SHAPE,
            copies,
            MAX_STEPS,
            MAX_REGISTERS,
            record,
            captured=captured,
        )

    def run(self, program: SamplerProgram, guidance_scale: float = 1.0) -> Array:
        draws = iter([k for k, needed in enumerate(program.needs_noise) if needed])

        def draw(out: Array) -> None:
            out[:] = unit_noise(next(draws))

        return run(self.trajectory, program, guidance_scale, draw)


def run(
    trajectory: _native.Trajectory,
    program: SamplerProgram,
    guidance_scale: float = 1.0,
    noise: Callable[[Array], object] | None = None,
) -> Array:
    tables = program.t, program.c_in, program.A, program.b, program.d
    return trajectory.run(*tables, guidance_scale, initial(program), noise)


def unit_noise(k: int) -> Array:
    return np.random.default_rng(100 + k).standard_normal(SHAPE, dtype=np.float32)


def initial(program: SamplerProgram) -> Array:
    start: Array = unit_noise(-1) * np.float32(program.init_scale)
    return start


def program_of(sampler: str, steps: int = 8) -> SamplerProgram:
    return build_program(sampler, SAMPLERS[sampler].default_schedule, steps, SCHEDULE)
