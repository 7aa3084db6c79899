"""What the native runtime does beside whole runs: parts, other types, noise, pixels, copies."""

from __future__ import annotations

import numpy as np
import pytest
from support.native_server import SHAPE, Array, Server, initial, predict, program_of, unit_noise

from sdengine import _native
from sdengine.errors import Cancelled, DeviceError, NonFiniteError
from sdengine.samplers import SamplerProgram
from sdengine.samplers.noise import NoiseSource


def tables(program: SamplerProgram) -> tuple[Array, Array, Array, Array, Array]:
    return program.t, program.c_in, program.A, program.b, program.d


def noise_of(kind: str) -> NoiseSource:
    return NoiseSource([3, 4], SHAPE[1:], kind=kind)


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m"])
def test_parts_equal_the_whole_whoever_uses_the_memory_between(sampler: str) -> None:
    server = Server(copies=2)
    program = program_of(sampler)
    expected = server.run(program, 5.0)
    draws = iter(range(100))
    needed = [k for k, wanted in enumerate(program.needs_noise) if wanted]

    def draw(out: Array) -> None:
        out[:] = unit_noise(needed[next(draws)])

    trajectory = server.trajectory
    trajectory.start(*tables(program), 5.0, initial(program))
    seen = []
    for count in (1, 3, 1, 3):
        trajectory.advance(count, draw)
        seen.append(trajectory.read())
        registers = trajectory.save()
        assert registers.shape == (program.num_registers, *SHAPE)
        np.testing.assert_array_equal(registers[0], seen[-1])
        server.desk(predict, 2, name="other").run(*tables(program), 2.0, initial(program), draw_any)
        trajectory.resume(registers)
    np.testing.assert_array_equal(seen[-1], expected)
    assert trajectory.steps_done == 8 and server.pool.report()["num_allocations"] == 1


def draw_any(out: Array) -> None:
    out[:] = 1


def test_a_network_is_recorded_once_and_replayed() -> None:
    server = Server()
    server.run(program_of("euler", 20))
    assert server.recordings == 1
    plain = Server()
    plain.trajectory = plain.desk(predict, captured=False)
    np.testing.assert_array_equal(
        plain.run(program_of("euler", 20)), server.run(program_of("euler", 20))
    )
    assert plain.recordings == 20 and plain.graphs.report()["misses"] == 0


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_generators_draw_without_python_what_they_draw_with_it(kind: str) -> None:
    program = program_of("euler_a")
    called, drawn = noise_of(kind), noise_of(kind)
    expected = Server().trajectory.run(*tables(program), 1.0, initial(program), called.step)
    found = Server().trajectory.run(*tables(program), 1.0, initial(program), drawn.generators)
    np.testing.assert_array_equal(found, expected)
    # Both streams have come as far.
    after = np.empty(SHAPE, np.float32), np.empty(SHAPE, np.float32)
    called.step(after[0])
    drawn.step(after[1])
    np.testing.assert_array_equal(*after)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_networks_of_16_bits(dtype: str) -> None:
    device = _native.CpuDevice()
    rows = (2 * SHAPE[0], *SHAPE[1:])
    regions = _native.trajectory_regions(SHAPE, 2, 8, 8, dtype, 6)
    pool = _native.MemoryPool({"set": regions}, device=device)
    sample = pool.view("set", "sample", rows, dtype)
    timestep = pool.view("set", "timestep", (6,), "float32")
    noise_pred = pool.view("set", "noise_pred", rows, dtype)

    def network() -> None:
        assert (timestep == timestep[0]).all()
        wide = np.empty(rows, np.float32)
        predict(sample.astype(np.float32), timestep[: len(rows)], wide)
        noise_pred[:] = wide

    graphs = _native.GraphCache(pool, 1)
    key = ("unet", 1, 8, 8, "")
    trajectory = _native.Trajectory(
        pool, "set", graphs, key, SHAPE, 2, 8, 8,
        lambda stream: device.enqueue(stream, network), dtype=dtype, num_timesteps=6,
    )  # fmt: skip
    program = program_of("euler")
    found = trajectory.run(*tables(program), 3.0, initial(program))
    expected = Server(copies=2).run(program, 3.0)
    limit = 0 if dtype == "float32" else 2e-3
    assert np.abs(found - expected).max() <= limit * np.abs(expected).max()
    graphs.drop(("another", 1, 8, 8, ""))
    assert graphs.report()["num_graphs"] == 1
    graphs.drop(key)
    assert graphs.report()["num_graphs"] == 0


class Desk:
    """A pool with regions for images, and a queue."""

    def __init__(self, dtype: str = "float32") -> None:
        size = np.dtype(dtype).itemsize
        self.pool = _native.MemoryPool(
            {"set": [("latents", 800, 0, 1), ("scaled", 100 * size, 0, 1),
                     ("images", 600 * size, 0, 1), ("pixels", 600, 0, 1), ("flag", 4, 0, 1)]}
        )  # fmt: skip
        self.queue = _native.Queue(self.pool)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_latents_are_scaled_and_images_become_pixels(dtype: str) -> None:
    desk = Desk(dtype)
    latents = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    desk.queue.upload("set", "latents", latents)
    desk.queue.scale("set", "latents", 100, 100, 3.0, "scaled", dtype)
    scaled = np.empty(100, dtype)
    desk.queue.download("set", "scaled", scaled)
    np.testing.assert_array_equal(scaled, (np.float32(3) * latents[100:]).astype(dtype))

    images = np.random.default_rng(1).uniform(-1.2, 1.2, (1, 3, 10, 20)).astype(dtype)
    desk.queue.upload("set", "images", images)
    pixels = desk.queue.to_pixels("set", "images", dtype, 10, 20, "pixels", "flag")
    expected = _native.images_to_uint8(images.astype(np.float32))[0]
    np.testing.assert_array_equal(pixels, expected)
    images[0, 1, 2, 3] = np.nan
    desk.queue.upload("set", "images", images)
    with pytest.raises(NonFiniteError):
        desk.queue.to_pixels("set", "images", dtype, 10, 20, "pixels", "flag")


def test_bfloat16_is_rounded_as_torch_rounds_it() -> None:
    torch = pytest.importorskip("torch")
    desk = Desk("float16")
    rng = np.random.default_rng(2)
    latents = (rng.standard_normal(200) * 10.0 ** rng.integers(-30, 30, 200)).astype(np.float32)
    desk.queue.upload("set", "latents", latents)
    desk.queue.scale("set", "latents", 0, 100, 1.0, "scaled", "bfloat16")
    bits = np.empty(100, np.uint16)
    desk.queue.download("set", "scaled", bits)
    expected = torch.from_numpy(latents[:100]).bfloat16().view(torch.uint16).numpy()
    np.testing.assert_array_equal(bits, expected)


def test_every_half_goes_there_and_back() -> None:
    pool = _native.MemoryPool({"set": [("latents", 4 << 16, 0, 0), ("scaled", 2 << 16, 0, 0)]})
    queue = _native.Queue(pool)
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    queue.upload("set", "latents", halves.astype(np.float32))
    queue.scale("set", "latents", 0, 1 << 16, 1.0, "scaled", "float16")
    found = np.empty(1 << 16, np.float16)
    queue.download("set", "scaled", found)
    np.testing.assert_array_equal(found, halves)  # NaN equals NaN here
    # Between two neighbours the even one is nearest; beyond the last, infinity is.
    rng = np.random.default_rng(3)
    exponents = rng.integers(-26, 18, 1 << 16)
    between = (rng.choice([1.0, 1.5, 1.25, 1.0009765625, 1.00048828125, 1.99951171875], 1 << 16)
               * 2.0**exponents).astype(np.float32)  # fmt: skip
    queue.upload("set", "latents", between)
    queue.scale("set", "latents", 0, 1 << 16, 1.0, "scaled", "float16")
    queue.download("set", "scaled", found)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(found, between.astype(np.float16))


def test_copies_stay_in_their_region() -> None:
    desk = Desk()
    for call in (
        lambda: desk.queue.upload("set", "flag", np.zeros(2, np.float32)),
        lambda: desk.queue.download("set", "flag", np.zeros(2, np.float32)),
        lambda: desk.queue.scale("set", "latents", 101, 100, 1.0, "scaled", "float32"),
        lambda: desk.queue.scale("set", "latents", 0, 101, 1.0, "scaled", "float32"),
        lambda: desk.queue.to_pixels("set", "images", "float32", 20, 20, "pixels", "flag"),
        lambda: desk.pool.view("set", "flag", (2,), "float32"),
    ):
        with pytest.raises(ValueError, match=r"region \w+: has \d+ bytes"):
            call()
    with pytest.raises(ValueError, match="dtype: int8"):
        desk.queue.scale("set", "latents", 0, 1, 1.0, "scaled", "int8")
    with pytest.raises(ValueError, match="C-contiguous"):
        desk.queue.upload("set", "latents", np.zeros((4, 4), np.float32).T)
    with pytest.raises(ValueError, match="was not planned"):
        desk.queue.upload("other", "latents", np.zeros(1, np.float32))


def test_parts_want_to_be_started_and_cancelled_ones_go_on() -> None:
    server = Server()
    trajectory = server.trajectory
    for call in (lambda: trajectory.advance(1), trajectory.read, trajectory.save):
        with pytest.raises(ValueError, match="start: a program is started first"):
            call()
    program = program_of("euler")
    trajectory.start(*tables(program), 1.0, initial(program))
    trajectory.advance(2)
    trajectory.cancel()
    with pytest.raises(Cancelled, match="before evaluation 3 of 8"):
        trajectory.advance(6)
    with pytest.raises(ValueError, match="end: 9 is not accepted"):
        trajectory.advance(7)
    trajectory.start(*tables(program), 1.0, initial(program))
    trajectory.advance(8)
    np.testing.assert_array_equal(trajectory.read(), server.run(program))
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        trajectory.start(*tables(program), 1.0, initial(program))
        trajectory.advance(1, noise_of("cpu").generators[:1])
    with pytest.raises(DeviceError):
        _native.cuda_device(999)


def test_regions_of_stages_that_never_meet_are_counted_once() -> None:
    regions = [("text", 1000, 0, 0), ("unet", 3000, 1, 1), ("latents", 256, 0, 1)]
    assert _native.plan_regions(regions) == 3072 + 256
