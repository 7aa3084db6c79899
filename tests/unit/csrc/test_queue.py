"""What the native runtime does beside whole runs: parts, other types, noise, pixels, copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.native_server import (
    MAX_REGISTERS,
    MAX_STEPS,
    SHAPE,
    Server,
    initial,
    noise_source,
    predict,
    program_of,
    region,
    run,
    step_noise,
    tables,
)

from sdengine import _native
from sdengine.errors import Cancelled, DeviceError, NonFiniteError


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m"])
def test_parts_equal_the_whole_whoever_uses_the_memory_between(sampler: str) -> None:
    server = Server(copies=2)
    program = program_of(sampler)
    expected = server.run(program, 5.0)
    noise = noise_source().generators
    other = server.desk(predict, 2, name="other")
    runner = server.runner
    runner.start(*tables(program), 5.0, initial(program))
    seen = []
    for count in (1, 3, 1, 3):
        runner.advance(count, noise)
        seen.append(runner.read())
        registers = runner.save()
        assert registers.shape == (program.num_registers, *SHAPE)
        np.testing.assert_array_equal(registers[0], seen[-1])
        run(other, program, 2.0, noise_source("cuda").generators)
        runner.resume(registers)
    np.testing.assert_array_equal(seen[-1], expected)
    assert server.device.num_allocations == 1


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m"])
def test_a_runner_of_other_rows_goes_on_where_one_stopped(sampler: str) -> None:
    """As at the borders of a guidance interval: two rows an image, then one, then two again."""
    server = Server(copies=2)
    program, noise = program_of(sampler), noise_source().generators
    alone = server.desk(predict, 1, name="alone")
    runner, first, registers = server.runner, 0, None
    for runner, count in ((server.runner, 3), (alone, 2), (server.runner, 3)):
        # Each has the program up to where it stops: what it draws ahead is its own noise only.
        runner.start(*tables(program.until(first + count)), 5.0, initial(program))
        if registers is not None:
            runner.resume(registers, first)
        runner.advance(count, noise)
        first, registers = first + count, runner.save()
    expected = np.zeros((program.num_registers, *SHAPE), dtype=np.float32)
    expected[0] = initial(program)
    drawn = step_noise(program, noise_source())
    for k in range(8):
        rows = SHAPE[0] * (1 if k in (3, 4) else 2)
        sample, noise_pred = np.empty((2, rows, *SHAPE[1:]), np.float32)
        _native.scale_duplicate(expected[0], float(program.c_in[k]), sample)
        predict(sample, np.full(rows, program.t[k], np.float32), noise_pred)
        row = program.A[k], program.b[k], program.d[k]
        assert _native.guided_step(expected, noise_pred, 5.0, *row, drawn.get(k))
    np.testing.assert_array_equal(runner.read(), expected[0])
    with pytest.raises(ValueError, match="next: 9"):
        runner.resume(expected, 9)


def test_a_network_is_recorded_once_and_replayed() -> None:
    server = Server()
    server.run(program_of("euler", 20))
    assert server.recordings == 1
    plain = Server()
    plain.runner = plain.desk(predict, captured=False)
    np.testing.assert_array_equal(
        plain.run(program_of("euler", 20)), server.run(program_of("euler", 20))
    )
    assert plain.recordings == 20


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_generators_draw_for_the_device_what_they_draw_for_the_host(kind: str) -> None:
    program = program_of("euler_a")
    on_host, on_device = noise_source(kind), noise_source(kind)
    run(Server().runner, program, noise=on_device.generators)
    step_noise(program, on_host)
    # Both streams have come as far.
    after = np.empty(SHAPE, np.float32), np.empty(SHAPE, np.float32)
    on_host.step(after[0])
    on_device.step(after[1])
    np.testing.assert_array_equal(*after)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_networks_of_16_bits(dtype: str) -> None:
    device = _native.CpuDevice()
    rows = (2 * SHAPE[0], *SHAPE[1:])
    regions = _native.trajectory_regions(SHAPE, 2, 8, 8, dtype, 6)
    pool = _native.MemoryPool({"set": regions}, device=device)
    sample, noise_pred = (
        region(pool, "sample", rows, dtype),
        region(pool, "noise_pred", rows, dtype),
    )
    timestep = region(pool, "timestep", (6,))
    recordings = []

    def network() -> None:
        assert (timestep == timestep[0]).all()
        wide = np.empty(rows, np.float32)
        predict(sample.astype(np.float32), timestep[: len(rows)], wide)
        noise_pred[:] = wide

    graphs = _native.GraphCache(pool, 1)
    key = ("unet", 1, 8, 8, "")

    def record(stream: int) -> None:
        recordings.append(stream)
        device.enqueue(stream, network)

    runner = _native.ProgramRunner(
        pool, "set", graphs, key, SHAPE, 2, 8, 8, record, dtype=dtype, num_timesteps=6
    )
    program = program_of("euler")
    found = run(runner, program, 3.0)
    expected = Server(copies=2).run(program, 3.0)
    limit = 0 if dtype == "float32" else 2e-3
    assert np.abs(found - expected).max() <= limit * np.abs(expected).max()
    for dropped, recorded in ((("another", 1, 8, 8, ""), 1), (key, 2)):
        graphs.drop(dropped)
        run(runner, program, 3.0)
        assert len(recordings) == recorded


class Desk:
    """A pool with regions for images, and a queue."""

    def __init__(self, dtype: str = "float32") -> None:
        size = np.dtype(dtype).itemsize
        self.pool = _native.MemoryPool(
            {"set": [("latents", 800, 0, 1), ("scaled", 100 * size, 0, 1),
                     ("images", 600 * size, 0, 1), ("pixels", 600, 0, 1), ("flag", 4, 0, 1)]}
        )  # fmt: skip
        self.queue = _native.Queue(self.pool)

    def pixels(self, dtype: str, *images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        height, width = images[0].shape[2:]
        batch = self.queue.pixel_batch("set", "flag", len(images), height, width)
        for image in images:
            self.queue.upload("set", "images", image)
            batch.add("images", dtype, "pixels")
        return batch.finish()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_latents_are_scaled_and_images_become_pixels(dtype: str) -> None:
    desk = Desk(dtype)
    latents = np.random.default_rng(0).standard_normal(200).astype(np.float32)
    desk.queue.upload("set", "latents", latents)
    desk.queue.scale("set", "latents", 100, 100, 3.0, "scaled", dtype)
    scaled = np.empty(100, dtype)
    desk.queue.download("set", "scaled", scaled)
    np.testing.assert_array_equal(scaled, (np.float32(3) * latents[100:]).astype(dtype))

    images = np.random.default_rng(1).uniform(-1.2, 1.2, (3, 1, 3, 10, 20)).astype(dtype)
    device = desk.pool.device
    assert isinstance(device, _native.CpuDevice)
    waits = device.ledger()["waits"]
    pixels = desk.pixels(dtype, *images)
    assert device.ledger()["waits"] == waits + 1  # for all of them
    expected = _native.images_to_uint8(images[:, 0].astype(np.float32))
    np.testing.assert_array_equal(pixels, expected)
    images[1, 0, 1, 2, 3] = np.nan
    with pytest.raises(NonFiniteError):
        desk.pixels(dtype, *images)
    np.testing.assert_array_equal(desk.pixels(dtype, images[2]), expected[2:])


def test_a_batch_of_pixels_is_filled_and_taken_once() -> None:
    desk = Desk()
    batch = desk.queue.pixel_batch("set", "flag", 1, 10, 20)
    with pytest.raises(ValueError, match="finish: 0 of 1 images were added"):
        batch.finish()
    batch.add("images", "float32", "pixels")
    with pytest.raises(ValueError, match="add: the batch has its 1 images"):
        batch.add("images", "float32", "pixels")
    del batch  # what it queued has been waited for
    for count, height, width in ((0, 1, 1), (1, 0, 1), (1, 1, 1 << 17)):
        with pytest.raises(ValueError, match="is not accepted; expected 1 to 65536"):
            desk.queue.pixel_batch("set", "flag", count, height, width)


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


def test_a_region_is_cleared_whole() -> None:
    desk = Desk()
    ones, found = np.ones(200, np.float32), np.empty(200, np.float32)
    desk.queue.upload("set", "latents", ones)
    desk.queue.upload("set", "scaled", ones[:100])
    desk.queue.clear("set", "latents")
    desk.queue.download("set", "latents", found)
    assert not found.any()
    desk.queue.download("set", "scaled", found[:100])
    assert found[:100].all()


def test_copies_stay_in_their_region() -> None:
    desk = Desk()
    calls: tuple[Callable[[], object], ...] = (
        lambda: desk.queue.upload("set", "flag", np.zeros(2, np.float32)),
        lambda: desk.queue.download("set", "flag", np.zeros(2, np.float32)),
        lambda: desk.queue.scale("set", "latents", 101, 100, 1.0, "scaled", "float32"),
        lambda: desk.queue.scale("set", "latents", 0, 101, 1.0, "scaled", "float32"),
        lambda: desk.queue.pixel_batch("set", "flag", 1, 20, 20).add("images", "float32", "pixels"),
    )
    for call in calls:
        with pytest.raises(ValueError, match=r"region \w+: has \d+ bytes"):
            call()
    with pytest.raises(ValueError, match="dtype: int8"):
        desk.queue.scale("set", "latents", 0, 1, 1.0, "scaled", "int8")
    with pytest.raises(ValueError, match="C-contiguous"):
        desk.queue.upload("set", "latents", np.zeros((4, 4), np.float32).T)
    with pytest.raises(ValueError, match="was not planned"):
        desk.queue.upload("other", "latents", np.zeros(1, np.float32))


def test_noise_of_the_host_comes_in_a_few_copies() -> None:
    program = program_of("euler_a", 31)  # noise in all steps but the last
    server = Server()
    runner = server.desk(predict)
    before = server.device.ledger()
    runner.start(*tables(program), 1.0, initial(program))
    runner.advance(31, noise_source().generators)
    after = server.device.ledger()
    # The program, the first latents, and noise of 1, 2, 4, 8, 8 and 7 evaluations.
    assert after["uploads"] - before["uploads"] == 2 + 6
    with_noise = np.prod(SHAPE) * 4 * (30 + 1)
    assert after["uploaded_bytes"] - before["uploaded_bytes"] > with_noise
    expected = run(Server().runner, program, noise=noise_source().generators)
    np.testing.assert_array_equal(runner.read(), expected)


def test_steps_that_are_done_are_counted() -> None:
    server, program = Server(), program_of("euler")
    runner = server.runner
    runner.start(*tables(program), 1.0, initial(program))
    for done in range(8):
        assert runner.steps_done() == done
        waits = server.device.ledger()["waits"]
        runner.advance(1)
        # Nothing is waited for but that the queue is not longer than two.
        assert server.device.ledger()["waits"] - waits == (1 if done >= 2 else 0)
    assert runner.steps_done() == 8


def test_a_capture_that_fails_in_a_run_does_not_end_it() -> None:
    server, program = Server(), program_of("euler", 6)
    expected = server.run(program)
    fails = False

    def network(stream: int) -> None:
        nonlocal fails
        if fails:
            fails = False
            raise DeviceError("unet: the engine did not run.")
        rows = region(server.pool, "sample", SHAPE), region(server.pool, "timestep", SHAPE[:1])
        noise_pred = region(server.pool, "noise_pred", SHAPE)
        server.device.enqueue(stream, lambda: predict(*rows, noise_pred))

    key = ("other", 2, *SHAPE[2:], "")
    runner = _native.ProgramRunner(
        server.pool, "set", server.graphs, key, SHAPE, 1, MAX_STEPS, MAX_REGISTERS, network
    )
    runner.start(*tables(program), 1.0, initial(program))
    runner.advance(2)
    assert runner.why_not_captured == ""
    server.graphs.drop(key)  # as when others needed its place
    fails = True
    runner.advance(4)
    assert runner.why_not_captured == "unet: the engine did not run."
    np.testing.assert_array_equal(runner.read(), expected)


def test_parts_want_to_be_started_and_cancelled_ones_go_on() -> None:
    server = Server()
    runner = server.runner
    for call in (lambda: runner.advance(1), runner.read, runner.save):
        with pytest.raises(ValueError, match="start: a program is started first"):
            call()
    program = program_of("euler")
    runner.start(*tables(program), 1.0, initial(program))
    runner.advance(2)
    runner.cancel()
    with pytest.raises(Cancelled, match="before evaluation 3 of 8"):
        runner.advance(6)
    with pytest.raises(ValueError, match="end: 9 is not accepted"):
        runner.advance(7)
    runner.start(*tables(program), 1.0, initial(program))
    runner.advance(8)
    np.testing.assert_array_equal(runner.read(), server.run(program))
    with pytest.raises(ValueError, match="1 generators for 2 images"):
        runner.start(*tables(program), 1.0, initial(program))
        runner.advance(1, noise_source().generators[:1])
    with pytest.raises(DeviceError):
        _native.cuda_device(999)
