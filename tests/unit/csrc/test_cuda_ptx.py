"""The PTX of csrc/cuda, run by the interpreter, against the CPU's kernels and NumPy."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from support.ptx.conversions import narrowed, widened
from support.ptx.faults import PtxFault
from support.ptx.global_memory import Buffer, GlobalMemory
from support.ptx.machine import run
from support.ptx.nvcc import compile_cuda, find_nvcc
from support.ptx.program import Program
from tolerances import assert_close

from sdengine import _native
from sdengine.samplers.reference import run_step_reference

if find_nvcc() is None:
    pytest.skip("nvcc is not installed: pip install nvidia-cuda-nvcc", allow_module_level=True)

Array = NDArray[Any]
Kernels = dict[tuple[str, str], Program]
DTYPES = ["float32", "float16", "bfloat16"]
THREADS = 256
TIMESTEPS = 350
LAYOUT = _native.step_layout()
STATE = struct.Struct("<diiiiii")  # as the header lays it out
BLOCKS_DONE = 24  # bytes from its begin
NOISE_SLOT = 2
NEXT = [0.5, 961.0]  # what the next row scales latents by, and its timestep


@pytest.fixture(scope="module", params=[75, 120])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kernels:
    folder = tmp_path_factory.mktemp("cuda")
    names = ("noise", "pixels", "step_kernels")
    return {k: v for name in names for k, v in compile_cuda(name, request.param, folder).items()}


def launch(kernel: Program, memory: GlobalMemory, body: bytes, count: int, blocks: int = 3) -> None:
    """Run a body over elements; few blocks, so that threads take several."""
    memory.freeze()
    run(kernel, (blocks,), (body, count), memory, threads=THREADS)


def packed(layout: str, *values: int | float | Buffer) -> bytes:
    return struct.pack(layout, *(v.address if isinstance(v, Buffer) else v for v in values))


def stored(values: Array, dtype: str) -> Array:
    """Return fp32 numbers as memory holds them in a type."""
    return values if dtype == "float32" else narrowed(values, dtype.replace("loat", ""))


def loaded(raw: Array, dtype: str) -> Array:
    """Return what memory holds as fp32."""
    if dtype == "float32":
        return raw.view(np.float32)
    return np.asarray(widened(raw.view(np.uint16), dtype.replace("loat", "")))


def written(memory: GlobalMemory, buffer: Buffer) -> Array:
    raw, known = memory.content(buffer)
    assert known.all()
    return raw


def empty(memory: GlobalMemory, name: str, size: int) -> Buffer:
    return memory.add(name, np.zeros(size, np.uint8), False, True)


@pytest.mark.parametrize("count", [1, 255, 1300])
def test_noise_is_the_processors_to_the_bit(kernels: Kernels, count: int) -> None:
    generator = _native.PhiloxNormal(2**40 + 7)
    generator.fill(np.empty(5, np.float32))
    expected = np.empty(count, np.float32)
    generator.fill(expected)
    memory = GlobalMemory(unique_writes=True)
    out = empty(memory, "out", 4 * count)
    launch(kernels["PhiloxBody", ""], memory, packed("<QI4xQ", 2**40 + 7, 1, out), count)
    assert (written(memory, out).view(np.float32) == expected).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [False, True])
def test_pixels(kernels: Kernels, dtype: str, bad: bool) -> None:
    images = np.random.default_rng(0).normal(0, 0.7, (2, 3, 5, 67)).astype(np.float32)
    images.reshape(-1)[:4] = [-1, 1, 0, 1 / 255]
    if bad:
        images[1, 2, 3, 4] = np.nan
    memory = GlobalMemory()  # all that see a number which is not finite write the flag
    source = memory.add("images", stored(images, dtype))
    out = empty(memory, "out", images.size)
    flag = memory.add("flag", np.zeros(1, np.int32), True, True)
    count = images.size // 3
    body = packed("<QQQQ", source, count // 2, out, flag)
    launch(kernels["PixelBody", dtype], memory, body, count, blocks=2)
    seen = loaded(stored(images, dtype), dtype)
    expected = _native.images_to_uint8(np.nan_to_num(seen, nan=-1.0))
    assert (written(memory, out).reshape(expected.shape) == expected).all()
    assert written(memory, flag).view(np.int32)[0] == bad


@pytest.mark.parametrize("dtype", DTYPES)
def test_scale(kernels: Kernels, dtype: str) -> None:
    source = np.random.default_rng(1).standard_normal(700, dtype=np.float32)
    memory = GlobalMemory(unique_writes=True)
    given = memory.add("source", source)
    out = empty(memory, "out", 700 * (4 if dtype == "float32" else 2))
    factor = np.float32(1 / 0.18215)
    launch(kernels["ScaleBody", dtype], memory, packed("<Qf4xQ", given, factor, out), 700, 1)
    assert (written(memory, out).view(stored(source, dtype).dtype) == stored(
        factor * source, dtype
    )).all()  # fmt: skip


def coefficients(R: int, seed: int) -> tuple[Array, Array, Array]:
    random = np.random.default_rng(seed)
    A, b, d = random.standard_normal((R, R)), random.standard_normal(R), random.standard_normal(R)
    A[0, -1] = 0.0 if R > 1 else A[0, -1]
    return A, b, d


def rows_of(A: Array, b: Array, d: Array) -> Array:
    """Return a table of three rows, of which the second holds the coefficients."""
    table = np.full((3, LAYOUT["row_doubles"]), np.nan)
    row = np.concatenate([[0.75, 981.0], A.reshape(-1), b, d])
    table[1, : len(row)] = row
    table[1, LAYOUT["noise_slot_double"]] = NOISE_SLOT
    table[2, :2] = NEXT
    return table


def state_of(R: int, guidance_scale: float, num_rows: int = 3) -> Array:
    return np.frombuffer(STATE.pack(guidance_scale, 1, 0, R, num_rows, 0, 0), np.uint8)


def test_the_layout_is_the_headers() -> None:
    assert LAYOUT["state_bytes"] == STATE.size
    assert LAYOUT["row_bytes"] == 8 and LAYOUT["timestep_double"] == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("copies", "timesteps"), [(1, 1), (2, 900)])
def test_prepare_step(kernels: Kernels, dtype: str, copies: int, timesteps: int) -> None:
    registers = np.random.default_rng(2).standard_normal((2, 333), dtype=np.float32)
    memory = GlobalMemory(unique_writes=True)
    given = [
        memory.add("registers", registers),
        memory.add("state", state_of(2, 1.0)),
        memory.add("rows", rows_of(*coefficients(2, 0))),
        empty(memory, "sample", copies * 333 * (4 if dtype == "float32" else 2)),
        empty(memory, "timestep", 4 * timesteps),
    ]
    body = packed("<QQQQQQQQ", *given, 333, copies, timesteps)
    launch(kernels["PrepareBody", dtype], memory, body, max(333, timesteps), 2)
    sample = written(memory, given[3]).view(stored(registers, dtype).dtype).reshape(copies, 333)
    assert (sample == stored(np.float32(0.75) * registers[0], dtype)).all()
    assert (written(memory, given[4]).view(np.float32) == 981).all()


@pytest.fixture
def step_memory() -> Iterator[GlobalMemory]:
    yield GlobalMemory()  # all threads that see what is not finite write the step's number


def finished(
    kernels: Kernels, memory: GlobalMemory, dtype: str, R: int, copies: int, registers: Array,
    noise_pred: Array, noise: Array, table: Array, num_rows: int = 3,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    """Return registers, state, and what the next step reads, after `finish_step`."""
    count = registers.shape[1]
    where = memory.add("registers", registers, True, True)
    # Only the row's own slot may be read.
    slots = np.zeros((NOISE_SLOT + 1, count), np.float32)
    slots[NOISE_SLOT] = noise
    known = np.arange(slots.nbytes) >= NOISE_SLOT * noise.nbytes
    state = memory.add("state", state_of(R, 7.5, num_rows), True, True)
    unwritten = np.full(copies * count, -9, np.float32)
    sample = memory.add("sample", stored(unwritten, dtype), True, True)
    timestep = memory.add("timestep", np.full(TIMESTEPS, -9, np.float32), True, True)
    body = packed(
        "<11Q", where, memory.add("noise_pred", stored(noise_pred, dtype)),
        memory.add("noise", slots, known), state, state, memory.add("rows", table), sample,
        timestep, count, copies, TIMESTEPS,
    )  # fmt: skip
    memory.freeze()
    arguments = (body, max(count, TIMESTEPS), state.address + BLOCKS_DONE)
    run(kernels["FinishBody", dtype], (2,), arguments, memory, threads=THREADS)
    after = written(memory, state)
    assert STATE.unpack(after.tobytes())[4:] == (num_rows, 0, 0)  # no block is counted any more
    return (
        written(memory, where).view(np.float32).reshape(R, count),
        after[8:20].view(np.int32),
        loaded(written(memory, sample), dtype).reshape(copies, count),
        written(memory, timestep).view(np.float32),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("R", "copies"), [(1, 1), (2, 2), (5, 2), (8, 1)])
def test_finish_step(
    kernels: Kernels, step_memory: GlobalMemory, dtype: str, R: int, copies: int
) -> None:
    random = np.random.default_rng(R)
    registers = random.standard_normal((R, 333), dtype=np.float32)
    drawn = random.standard_normal((copies, 333), dtype=np.float32)
    noise_pred = loaded(stored(drawn, dtype), dtype)
    noise = random.standard_normal(333, dtype=np.float32)
    A, b, d = coefficients(R, R)
    got, state, sample, timestep = finished(
        kernels, step_memory, dtype, R, copies, registers, noise_pred, noise, rows_of(A, b, d)
    )
    expected = registers[:, None].astype(np.float64)
    run_step_reference(expected, noise_pred.astype(np.float64), 7.5, A, b, d, noise[None])
    assert_close("guided_step", "float32", got, expected[:, 0])
    assert state.tolist() == [2, 0, R]
    # The next step begins where this one ended.
    scaled = stored(np.float32(NEXT[0]) * got[0], dtype)
    assert (sample == loaded(scaled, dtype)).all()
    assert (timestep == NEXT[1]).all()


def test_behind_the_last_row_nothing_begins(kernels: Kernels, step_memory: GlobalMemory) -> None:
    one = np.ones((1, 40), np.float32)
    table = rows_of(np.ones((1, 1)), np.ones(1), np.zeros(1))[:2]
    got, state, sample, timestep = finished(
        kernels, step_memory, "float32", 1, 1, one, one, one[0], table, num_rows=2
    )
    assert (got == 2).all() and state.tolist() == [2, 0, 1]
    assert (sample == -9).all() and (timestep == -9).all()


def test_step_without_weight_reads_nothing_that_is_no_number(
    kernels: Kernels, step_memory: GlobalMemory
) -> None:
    registers = np.ones((2, 40), np.float32)
    registers[1] = np.nan
    noise = np.full(40, np.nan, np.float32)
    A, b, d = np.array([[1.0, 0.0], [2.0, 0.0]]), np.zeros(2), np.zeros(2)
    got, state, *_ = finished(
        kernels, step_memory, "float32", 2, 1, registers, np.ones((1, 40), np.float32), noise,
        rows_of(A, b, d),
    )  # fmt: skip
    assert got.tolist() == [[1.0] * 40, [2.0] * 40]
    assert state.tolist() == [2, 0, 2]


def test_step_that_is_not_finite_is_named(kernels: Kernels, step_memory: GlobalMemory) -> None:
    registers = np.ones((1, 600), np.float32)
    registers[0, [3, 300, 599]] = np.inf
    one, none = np.ones((1, 600), np.float32), np.zeros(600, np.float32)
    table = rows_of(np.ones((1, 1)), np.zeros(1), np.zeros(1))
    _, state, *_ = finished(kernels, step_memory, "float32", 1, 1, registers, one, none, table)
    assert state.tolist() == [2, 2, 1]  # the second row, counted from 1


def test_one_element_too_many_is_out_of_bounds(kernels: Kernels) -> None:
    memory = GlobalMemory()
    given = memory.add("source", np.zeros(300, np.float32))
    out = empty(memory, "out", 300 * 4)
    with pytest.raises(PtxFault, match="4 bytes out of bounds are read by 1 lanes, at byte 1200"):
        launch(kernels["ScaleBody", "float32"], memory, packed("<Qf4xQ", given, 1.0, out), 301)
