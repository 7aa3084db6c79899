"""The native runtime on a GPU against the same on the processor; the network is a copy."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from support.native_server import SCHEDULE, SHAPE, Array, noise_source, region, run, unit_noise

from sdengine import _native
from sdengine.samplers import SAMPLERS, SamplerProgram, build_program

pytestmark = pytest.mark.gpu

COUNT = int(np.prod(SHAPE))


def regions() -> list[tuple[str, int, int, int]]:
    sizes = [("scaled", 4 * COUNT, 2, 2), ("images", 12 * 400, 2, 2)]
    found = _native.trajectory_regions(SHAPE, 1, 40, 8)
    return [*found, *sizes, ("pixels", 1200, 2, 2), ("flag", 4, 2, 2)]


class Gpu:
    """A pool on the GPU whose network predicts its own input."""

    def __init__(self) -> None:
        self.device = _native.cuda_device()
        self.pool = _native.MemoryPool({"set": regions()}, device=self.device)
        self.queue = _native.Queue(self.pool)
        self.graphs = _native.GraphCache(self.pool, 2)
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.recordings = 0

    def network(self, stream: int) -> None:
        self.recordings += 1
        sample, out = (self.pool.address("set", name) for name in ("sample", "noise_pred"))
        places = ctypes.c_uint64(out), ctypes.c_uint64(sample), ctypes.c_size_t(4 * COUNT)
        assert self.driver.cuMemcpyDtoDAsync_v2(*places, ctypes.c_void_p(stream)) == 0

    def run(self, program: SamplerProgram, kind: str, captured: bool = True) -> Array:
        runner = _native.ProgramRunner(
            self.pool, "set", self.graphs, ("net", 2, 5, 6, ""), SHAPE, 1, 40, 8, self.network,
            captured=captured, queue=self.queue,
        )  # fmt: skip
        return run(runner, program, noise=noise_source(kind).generators)


def on_the_processor(program: SamplerProgram, kind: str) -> Array:
    device = _native.CpuDevice()
    pool = _native.MemoryPool({"set": regions()}, device=device)
    sample, noise_pred = region(pool, "sample", SHAPE), region(pool, "noise_pred", SHAPE)

    def compute() -> None:
        noise_pred[:] = sample

    runner = _native.ProgramRunner(
        pool, "set", _native.GraphCache(pool, 1), ("net", 2, 5, 6, ""), SHAPE, 1, 40, 8,
        lambda stream: device.enqueue(stream, compute),
    )  # fmt: skip
    return run(runner, program, noise=noise_source(kind).generators)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("sampler", ["euler", "euler_a", "dpmpp_2m"])
def test_trajectories_are_those_of_the_processor(sampler: str, kind: str) -> None:
    gpu = Gpu()
    program = build_program(sampler, SAMPLERS[sampler].default_schedule, 20, SCHEDULE)
    expected = on_the_processor(program, kind)
    before = gpu.device.num_allocations
    for captured in (True, False):
        found = gpu.run(program, kind, captured)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert gpu.recordings == 1 + 20
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
    batch = gpu.queue.pixel_batch("set", "flag", 2, 20, 20)
    for _ in range(2):
        batch.add("images", "float32", "pixels")
    for pixels in batch.finish():
        np.testing.assert_array_equal(pixels, _native.images_to_uint8(images)[0])
