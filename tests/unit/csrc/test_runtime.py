"""The native runtime on the CPU: whole programs, memory, graphs, cancelling."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from support.native_server import (
    SHAPE,
    Array,
    Server,
    initial,
    noise_source,
    predict,
    program_of,
    run,
    step_noise,
    unit_noise,
)
from tolerances import assert_close

from sdengine import _native
from sdengine.errors import Cancelled, DeviceError, NonFiniteError, OutOfMemoryError
from sdengine.samplers import SAMPLERS, SamplerProgram
from sdengine.samplers.reference import sample_reference


def run_step_by_step(program: SamplerProgram, copies: int, guidance_scale: float) -> Array:
    """Compute a trajectory with the kernels that Python calls one by one."""
    registers = np.zeros((program.num_registers, *SHAPE), dtype=np.float32)
    registers[0] = initial(program)
    rows = (copies * SHAPE[0], *SHAPE[1:])
    sample, noise_pred = np.empty(rows, np.float32), np.empty(rows, np.float32)
    noise = step_noise(program, noise_source())
    for k in range(len(program.t)):
        _native.scale_duplicate(registers[0], float(program.c_in[k]), sample)
        predict(sample, np.full(rows[0], program.t[k], np.float32), noise_pred)
        row = program.A[k], program.b[k], program.d[k]
        assert _native.guided_step(registers, noise_pred, guidance_scale, *row, noise.get(k))
    latents: Array = registers[0]
    return latents


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_every_sampler_equals_its_reference(sampler: str) -> None:
    program = program_of(sampler)

    def denoiser(sample: Array, timestep: float) -> Array:
        out = np.empty_like(sample)
        predict(sample, np.full(len(sample), timestep), out)
        return out

    noise = step_noise(program, noise_source())
    start = unit_noise(-1).astype(np.float64)
    expected = sample_reference(program, denoiser, start, noise.__getitem__)
    assert_close("sampler_trajectory", "float64", Server().run(program), expected[-1])


@pytest.mark.parametrize("sampler", ["euler_a", "dpmpp_2m", "pndm"])
@pytest.mark.parametrize("copies", [1, 2])
def test_trajectory_equals_its_single_steps_to_the_bit(sampler: str, copies: int) -> None:
    program = program_of(sampler)
    latents = Server(copies=copies).run(program, 7.5)
    np.testing.assert_array_equal(latents, run_step_by_step(program, copies, 7.5))


def test_one_graph_serves_all_samplers_without_allocating() -> None:
    server = Server(copies=2)
    server.runner.warm_up()
    address = server.pool.address("set", "registers")
    for sampler in sorted(SAMPLERS):
        server.run(program_of(sampler), 3.0)
    assert server.recordings == 1
    assert server.device.num_allocations == 1
    assert server.pool.address("set", "registers") == address


def test_cancelling_from_another_thread() -> None:
    evaluated, may_go_on = threading.Event(), threading.Event()
    count = 0

    def network(sample: Array, timestep: Array, noise_pred: Array) -> None:
        nonlocal count
        count += 1
        if count == 5:
            evaluated.set()
            assert may_go_on.wait(30)
        predict(sample, timestep, noise_pred)

    server = Server(network)

    def canceller() -> None:
        assert evaluated.wait(30)  # the lock of the interpreter is free, or this would hang
        server.runner.cancel()
        may_go_on.set()

    thread = threading.Thread(target=canceller)
    thread.start()
    program = program_of("euler", 20)
    with pytest.raises(Cancelled, match="before evaluation 6 of 20"):
        server.run(program)
    thread.join()
    assert count == 5
    np.testing.assert_array_equal(server.run(program), run_step_by_step(program, 1, 1.0))


def test_what_a_network_raises_comes_out_and_the_next_run_works() -> None:
    fails = True

    def network(sample: Array, timestep: Array, noise_pred: Array) -> None:
        if fails:
            raise KeyError("lost")
        predict(sample, timestep, noise_pred)

    server = Server(network)
    program = program_of("euler")
    with pytest.raises(KeyError, match="lost"):
        server.run(program)
    fails = False
    np.testing.assert_array_equal(server.run(program), run_step_by_step(program, 1, 1.0))


def test_the_evaluation_with_nan_is_named() -> None:
    count = 0

    def network(sample: Array, timestep: Array, noise_pred: Array) -> None:
        nonlocal count
        count += 1
        noise_pred.fill(np.nan if count == 3 else 0)

    with pytest.raises(NonFiniteError, match="unet: evaluation 3 of 8"):
        Server(network).run(program_of("euler"))


def test_a_pool_serves_one_image_at_a_time() -> None:
    server = Server()
    program = program_of("euler")
    other = server.desk(predict, name="other")

    def network(sample: Array, timestep: Array, noise_pred: Array) -> None:
        run(other, program)

    with pytest.raises(DeviceError, match="in use by another image"):
        run(server.desk(network, name="nesting"), program)
    assert np.isfinite(server.run(program)).all()


def test_evicted_graphs_let_their_networks_go() -> None:
    server = Server(max_graphs=1)
    program = program_of("euler", 3)
    living = []
    for name in ("a", "b", "c"):

        def network(sample: Array, timestep: Array, noise_pred: Array) -> None:
            predict(sample, timestep, noise_pred)

        living.append(weakref.ref(network))
        run(server.desk(network, name=name), program)
        del network
    gc.collect()
    assert [reference() is not None for reference in living] == [False, False, True]


def test_memory_beyond_the_cap_is_refused_with_its_numbers() -> None:
    sets = {"512": [("a", 1000, 0, 0), ("b", 2000, 1, 1)], "768": [("a", 5000, 0, 1)]}
    with pytest.raises(OutOfMemoryError, match=r"768 needs 5120 bytes; 4096 .* cap of 4096"):
        _native.MemoryPool(sets, cap_bytes=4096)
    with pytest.raises(OutOfMemoryError, match="5120 bytes; 3000 are available"):
        _native.MemoryPool(sets, device=_native.CpuDevice(limit_bytes=3000))
    device = _native.CpuDevice(limit_bytes=8000)
    pool = _native.MemoryPool(sets, cap_bytes=5120, device=device)
    assert device.memory_info() == (8000 - 5120, 8000)
    assert pool.device.num_allocations == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"t": np.zeros(3)}, r"t: has shape \[3\]; expected \[8\]"),
        ({"A": np.zeros((8, 1))}, r"A: has shape \[8,1\]; expected \[8,1,1\]"),
        ({"b": np.zeros(8)}, r"b: has shape \[8\]; expected \[K,R\]"),
        ({"initial": np.zeros((1, 4), np.float32)}, r"initial: has shape \[1,4\]"),
        ({"d": np.ones((8, 1))}, "noise: is None; the program needs noise"),
    ],
)
def test_wrong_arrays_are_refused(change: dict[str, Any], message: str) -> None:
    program = program_of("euler")
    arrays: dict[str, Any] = {
        "t": program.t,
        "c_in": program.c_in,
        "A": program.A,
        "b": program.b,
        "d": program.d,
        "initial": initial(program),
    }
    runner = Server().runner
    with pytest.raises(ValueError, match=message):
        runner.start(guidance_scale=1.0, **(arrays | change))
        runner.advance(8)


def test_what_does_not_fit_is_refused() -> None:
    server = Server()
    with pytest.raises(ValueError, match="steps: 41 is not accepted; expected 1 to 40"):
        server.run(program_of("euler", 41))
    with pytest.raises(ValueError, match="shape: is empty, negative or beyond"):
        _native.trajectory_regions((2**40, 2**40), 1, 1, 1)
    with pytest.raises(ValueError, match="copies: 3 is not accepted"):
        _native.trajectory_regions(SHAPE, 3, 1, 1)
    with pytest.raises(ValueError, match="was not planned"):
        server.pool.address("set", "unet")
    with pytest.raises(ValueError, match="max_graphs: 0"):
        _native.GraphCache(server.pool, 0)
    with pytest.raises(ValueError, match="belongs to another memory pool"):
        _native.ProgramRunner(
            Server().pool, "set", server.graphs, ("", 1, 1, 1, ""), SHAPE, 1, 1, 1, lambda stream: 0
        )
