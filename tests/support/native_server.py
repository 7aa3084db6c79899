"""Native program runners on the CPU device, whose network is a Python function over arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from support.host_memory import memory_at

from sdengine import _native
from sdengine.samplers import SAMPLERS, NoiseSchedule, SamplerProgram, build_program
from sdengine.samplers.noise import NoiseSource

Array = np.ndarray[Any, np.dtype[Any]]
Generators = Sequence[_native.MersenneNormal | _native.PhiloxNormal]
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
    """A pool, a graph cache and one runner; the pool must live as long as the runners."""

    def __init__(self, network: Network = predict, copies: int = 1, max_graphs: int = 2) -> None:
        regions = _native.trajectory_regions(SHAPE, copies, MAX_STEPS, MAX_REGISTERS)
        self.device = _native.CpuDevice()
        self.pool = _native.MemoryPool({"set": regions}, device=self.device)
        self.graphs = _native.GraphCache(self.pool, max_graphs)
        self.recordings = 0
        self.runner = self.desk(network, copies)

    def desk(
        self, network: Network, copies: int = 1, name: str = "unet", captured: bool = True
    ) -> _native.ProgramRunner:
        rows = (copies * SHAPE[0], *SHAPE[1:])
        sample = region(self.pool, "sample", rows)
        timestep = region(self.pool, "timestep", rows[:1])
        noise_pred = region(self.pool, "noise_pred", rows)

        def record(stream: int) -> None:
            self.recordings += 1
            self.device.enqueue(stream, lambda: network(sample, timestep, noise_pred))

        return _native.ProgramRunner(
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
        return run(self.runner, program, guidance_scale, noise_source().generators)


def run(
    runner: _native.ProgramRunner,
    program: SamplerProgram,
    guidance_scale: float = 1.0,
    noise: Generators | None = None,
) -> Array:
    """Run a program from its first step to its last; return the latents."""
    runner.start(*tables(program), guidance_scale, initial(program))
    runner.advance(len(program.t), noise)
    return runner.read()


def tables(program: SamplerProgram) -> tuple[Array, Array, Array, Array, Array]:
    return program.t, program.c_in, program.A, program.b, program.d


def region(
    pool: _native.MemoryPool, name: str, shape: tuple[int, ...], dtype: str = "float32"
) -> Array:
    """Give an array over a region of the set "set", for as long as the pool lives."""
    return memory_at(pool.address("set", name), dtype, shape)


def noise_source(kind: str = "cpu") -> NoiseSource:
    """Start the noise of the steps of every run."""
    return NoiseSource([3, 4], SHAPE[1:], kind=kind)


def step_noise(program: SamplerProgram, source: NoiseSource) -> dict[int, Array]:
    """Draw what a source gives to the evaluations of a program that need some."""
    drawn = {}
    for k, needed in enumerate(program.needs_noise):
        if needed:
            drawn[k] = np.empty(SHAPE, np.float32)
            source.step(drawn[k])
    return drawn


def unit_noise(k: int) -> Array:
    return np.random.default_rng(100 + k).standard_normal(SHAPE, dtype=np.float32)


def initial(program: SamplerProgram) -> Array:
    start: Array = unit_noise(-1) * np.float32(program.init_scale)
    return start


def program_of(sampler: str, steps: int = 8) -> SamplerProgram:
    return build_program(sampler, SAMPLERS[sampler].default_schedule, steps, SCHEDULE)
