"""The native runtime on a GPU against the same on the processor, with a kernel for a network."""

from __future__ import annotations

import numpy as np
import pytest
from support.native_server import SCHEDULE, SHAPE, Array, initial, unit_noise

from sdengine import _native
from sdengine.samplers import SAMPLERS, SamplerProgram, build_program
from sdengine.samplers.noise import NoiseSource

pytestmark = pytest.mark.gpu

COUNT = int(np.prod(SHAPE))
FACTOR = 0.3


def regions() -> list[tuple[str, int, int, int]]:
    sizes = [("factor", 8, 0, 2), ("scaled", 4 * COUNT, 2, 2), ("images", 12 * 400, 2, 2)]
    found = _native.trajectory_regions(SHAPE, 1, 40, 8)
    return [*found, *sizes, ("pixels", 1200, 2, 2), ("flag", 4, 2, 2)]


class Gpu:
    """A pool on the GPU whose network multiplies by a factor."""

    def __init__(self) -> None:
        self.device = _native.cuda_device()
        self.pool = _native.MemoryPool({"set": regions()}, device=self.device)
        self.queue = _native.Queue(self.pool)
        self.graphs = _native.GraphCache(self.pool, 2)
        self.queue.upload("set", "factor", np.array([FACTOR]))
        self.queue.synchronize()
        self.recordings = 0

    def network(self, stream: int) -> None:
        self.recordings += 1
        sample, factor, out = (
            self.pool.address("set", name) for name in ("sample", "factor", "noise_pred")
        )
        _native.cuda_scale_duplicate(sample, COUNT, factor, 0, 1, out, stream)

    def run(self, program: SamplerProgram, noise: NoiseSource, captured: bool = True) -> Array:
        trajectory = _native.Trajectory(
            self.pool, "set", self.graphs, ("net", 2, 5, 6, ""), SHAPE, 1, 40, 8, self.network,
            captured=captured, queue=self.queue,
        )  # fmt: skip
        tables = program.t, program.c_in, program.A, program.b, program.d
        return trajectory.run(*tables, 1.0, initial(program), noise.generators)


def on_the_processor(program: SamplerProgram, noise: NoiseSource) -> Array:
    device = _native.CpuDevice()
    pool = _native.MemoryPool({"set": regions()}, device=device)
    sample = pool.view("set", "sample", SHAPE, "float32")
    noise_pred = pool.view("set", "noise_pred", SHAPE, "float32")

    def compute() -> None:
        noise_pred[:] = np.float32(FACTOR) * sample

    trajectory = _native.Trajectory(
        pool, "set", _native.GraphCache(pool, 1), ("net", 2, 5, 6, ""), SHAPE, 1, 40, 8,
        lambda stream: device.enqueue(stream, compute),
    )  # fmt: skip
    tables = program.t, program.c_in, program.A, program.b, program.d
    return trajectory.run(*tables, 1.0, initial(program), noise.generators)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m"])
def test_trajectories_are_those_of_the_processor(sampler: str, kind: str) -> None:
    gpu = Gpu()
    program = build_program(sampler, SAMPLERS[sampler].default_schedule, 20, SCHEDULE)
    expected = on_the_processor(program, NoiseSource([3, 4], SHAPE[1:], kind=kind))
    before = gpu.device.num_allocations
    for captured in (True, False):
        found = gpu.run(program, NoiseSource([3, 4], SHAPE[1:], kind=kind), captured)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert gpu.recordings == 1 + 20 and gpu.graphs.report()["num_graphs"] == 1
    assert gpu.device.num_allocations == before


def test_latents_and_pixels() -> None:
    gpu = Gpu()
    latents = unit_noise(0)
    gpu.queue.upload("set", "registers", latents)
    gpu.queue.scale("set", "registers", COUNT // 2, COUNT // 2, 1 / 0.18215, "scaled", "float16")
    scaled = np.empty(COUNT // 2, np.float16)
    gpu.queue.download("set", "scaled", scaled)
    half = (np.float32(1 / 0.18215) * latents.ravel()[COUNT // 2 :]).astype(np.float16)
    np.testing.assert_array_equal(scaled, half)
    images = np.random.default_rng(0).uniform(-1.1, 1.1, (1, 3, 20, 20)).astype(np.float32)
    gpu.queue.upload("set", "images", images)
    pixels = gpu.queue.to_pixels("set", "images", "float32", 20, 20, "pixels", "flag")
    np.testing.assert_array_equal(pixels, _native.images_to_uint8(images)[0])
