"""The native kernels against NumPy, and what they refuse."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

from sdengine import _native
from sdengine.errors import NonFiniteError
from sdengine.samplers.reference import run_step_reference

Array = np.ndarray[Any, np.dtype[Any]]


def made_step(
    R: int, shape: tuple[int, ...], rows: int, seed: int = 0
) -> tuple[Array, Array, Array, Array, Array, Array]:
    rng = np.random.default_rng(seed)
    registers = rng.standard_normal((R, *shape), dtype=np.float32)
    noise_pred = rng.standard_normal((rows, *shape[1:]), dtype=np.float32)
    noise = rng.standard_normal(shape, dtype=np.float32)
    A, b, d = rng.standard_normal((R, R)), rng.standard_normal(R), rng.standard_normal(R)
    return registers, noise_pred, A, b, d, noise


@pytest.mark.parametrize("R", [1, 2, 3, 8])
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (2, 4, 5, 7), (3, 1), (2, 4, 64, 64)], ids=str)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("noisy", [False, True])
def test_guided_step(R: int, shape: tuple[int, ...], guided: bool, noisy: bool) -> None:
    rows = shape[0] * (2 if guided else 1)
    registers, noise_pred, A, b, d, noise = made_step(R, shape, rows)
    expected = registers.astype(np.float64)
    given = noise if noisy else None
    run_step_reference(expected, noise_pred.astype(np.float64), 7.5, A, b, d, given)
    assert _native.guided_step(registers, noise_pred, 7.5, A, b, d, given) is True
    assert_close("guided_step", "float32", registers, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 255, 256, 1023])
def test_guided_step_reports_what_is_not_finite(value: float, position: int) -> None:
    registers, noise_pred, A, b, d, noise = made_step(2, (1, 4, 16, 16), 2)
    noise_pred.reshape(2, -1)[1, position] = value
    assert _native.guided_step(registers, noise_pred, 2.0, A, b, d, noise) is False


def test_guided_step_ignores_what_has_weight_zero() -> None:
    registers, noise_pred, A, b, d, _ = made_step(2, (1, 4), 1)
    A[:, 1] = 0
    registers[1] = np.nan  # history that the first step of a multistep sampler must not read
    assert _native.guided_step(registers, noise_pred, 1.0, A, b, d) is True


def test_guided_step_reports_overflow() -> None:
    registers, noise_pred, A, b, d, _ = made_step(1, (1, 4), 1)
    A[:] = 1e39
    assert _native.guided_step(registers, noise_pred, 1.0, A, b, d, None) is False


@pytest.mark.parametrize(
    ("name", "wrong", "error", "message"),
    [
        ("registers", np.zeros((2, 2, 4)), TypeError, "registers: is float64; expected float32"),
        ("registers", np.zeros(2, np.float32), ValueError, r"registers: has shape \[2\]"),
        ("noise_pred", np.zeros((3, 4), np.float32), ValueError, r"noise_pred: has shape \[3,4\]"),
        ("noise_pred", np.zeros((4, 5), np.float32), ValueError, "noise_pred: has shape"),
        ("noise_pred", np.zeros((4, 4), np.float16), TypeError, "noise_pred: is float16"),
        ("A", np.zeros((2, 3)), ValueError, r"A: has shape \[2,3\]; expected \[2,2\]"),
        ("A", np.zeros((2, 2), np.float32), TypeError, "A: is float32; expected float64"),
        ("b", np.zeros(3), ValueError, r"b: has shape \[3\]; expected \[2\]"),
        ("d", np.zeros((2, 1)), ValueError, r"d: has shape \[2,1\]"),
        ("noise", np.zeros((1, 4), np.float32), ValueError, r"noise: has shape \[1,4\]"),
        ("noise", np.zeros((4, 2), np.float32).T, ValueError, "noise: is not C-contiguous"),
        ("registers", [[[0.0]]], TypeError, "incompatible function arguments"),
    ],
)
def test_guided_step_refuses(name: str, wrong: Any, error: type, message: str) -> None:
    registers, noise_pred, A, b, d, noise = made_step(2, (2, 4), 4)
    arguments: dict[str, Any] = {
        "registers": registers,
        "noise_pred": noise_pred,
        "guidance_scale": 3.0,
        "A": A,
        "b": b,
        "d": d,
        "noise": noise,
    }
    before = registers.copy()
    arguments[name] = wrong
    with pytest.raises(error, match=message):
        _native.guided_step(**arguments)
    np.testing.assert_array_equal(registers, before)


def test_unaligned_arrays_are_refused() -> None:
    out = np.zeros(17, np.uint8)[1:].view(np.float32)
    with pytest.raises(ValueError, match="out: is not aligned"):
        _native.MersenneNormal(1).fill(out)


def test_guided_step_refuses_too_many_registers() -> None:
    registers, noise_pred, A, b, d, noise = made_step(9, (1, 4), 1)
    with pytest.raises(ValueError, match="registers: 9 of them; at most 8"):
        _native.guided_step(registers, noise_pred, 1.0, A, b, d, noise)


def test_kernels_accept_empty_batches() -> None:
    registers, noise_pred, A, b, d, noise = made_step(2, (0, 4), 0)
    assert _native.guided_step(registers, noise_pred, 1.0, A, b, d, noise) is True
    _native.scale_duplicate(noise, 2.0, noise_pred)
    assert _native.images_to_uint8(np.zeros((0, 3, 4, 5), np.float32)).shape == (0, 4, 5, 3)


@pytest.mark.parametrize("copies", [1, 2])
def test_scale_duplicate(copies: int) -> None:
    latents = np.random.default_rng(1).standard_normal((3, 4, 5, 6), dtype=np.float32)
    out = np.full((3 * copies, 4, 5, 6), np.nan, np.float32)
    _native.scale_duplicate(latents, 0.07, out)
    assert_close("scale_duplicate", "float32", out, np.concatenate([latents] * copies) * 0.07)


def test_scale_duplicate_in_place() -> None:
    buffer = np.arange(8, dtype=np.float32).reshape(2, 4)
    _native.scale_duplicate(buffer[:1], 2.0, buffer)
    np.testing.assert_array_equal(buffer, [[0, 2, 4, 6]] * 2)


def test_scale_duplicate_refuses() -> None:
    latents = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"out: has shape \[3,4\]"):
        _native.scale_duplicate(latents, 1.0, np.zeros((3, 4), np.float32))
    with pytest.raises(TypeError, match="out: is int32; expected float32"):
        _native.scale_duplicate(latents, 1.0, np.zeros((2, 4), np.int32))
    out = np.zeros((2, 4), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: is read-only"):
        _native.scale_duplicate(latents, 1.0, out)


def pixels_reference(images: Array) -> Array:
    half = np.float32(0.5)
    unit = np.clip(images * half + half, 0, 1)
    pixels: Array = np.rint(unit * np.float32(255)).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels


def test_images_to_uint8() -> None:
    images = np.random.default_rng(2).uniform(-1.3, 1.3, (2, 3, 33, 17)).astype(np.float32)
    pixels = _native.images_to_uint8(images)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, pixels_reference(images))


def test_images_to_uint8_rounds_halves_to_even() -> None:
    levels = np.arange(256, dtype=np.float32)
    near_halves = ((levels + np.float32(0.5)) / 255 * 2 - 1).astype(np.float32)
    around = [np.nextafter(near_halves, np.float32(s)) for s in (-9, 9)] + [near_halves]
    images = np.stack([np.stack(around)] * 1).reshape(1, 3, 16, 16)
    np.testing.assert_array_equal(_native.images_to_uint8(images), pixels_reference(images))
    half = np.full((1, 3, 1, 1), np.float32(127.5 / 255 * 2 - 1))
    assert (_native.images_to_uint8(half) == 128).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_images_to_uint8_refuses_what_is_not_finite(value: float) -> None:
    images = np.zeros((1, 3, 8, 8), np.float32)
    images[0, 2, 7, 7] = value
    with pytest.raises(NonFiniteError, match="images: contain NaN or infinity"):
        _native.images_to_uint8(images)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 8, 8, 3)], ids=str)
def test_images_to_uint8_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images: has shape .* expected \[B,3,H,W\]"):
        _native.images_to_uint8(np.zeros(shape, np.float32))


def test_other_threads_run_meanwhile() -> None:
    registers, noise_pred, A, b, d, noise = made_step(2, (8, 4, 128, 128), 16)
    copies = [registers.copy() for _ in range(4)]
    threads = [
        threading.Thread(target=_native.guided_step, args=(copy, noise_pred, 2.0, A, b, d, noise))
        for copy in copies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for copy in copies[1:]:
        np.testing.assert_array_equal(copy, copies[0])


def test_build_info_and_cuda_state_agree() -> None:
    info = _native.build_info()
    assert set(info) == {"compiler", "instruction_sets", "cuda", "cuda_capabilities"}
    assert (info["cuda"] is None) == (info["cuda_capabilities"] == [])
    usable, reason = _native.cuda_available()
    assert reason
    if info["cuda"] is None:
        assert not usable and "without CUDA" in reason


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_table_rows(dtype: type[np.floating]) -> None:
    table = np.random.default_rng(3).standard_normal((9, 5)).astype(dtype)
    table[0] = [0.0, -0.0, 6e-8, -65504, np.inf]  # of fp16: a subnormal and the largest
    rows = np.array([[0, 8, 0], [4, 1, 2]])
    found = _native.table_rows(table, rows)
    assert found.dtype == np.float32
    assert found.tobytes() == table[rows].astype(np.float32).tobytes()


@pytest.mark.parametrize("row", [-1, 9])
def test_table_rows_refuses_rows_that_are_not_there(row: int) -> None:
    with pytest.raises(IndexError, match="rows: expected 0 to 8"):
        _native.table_rows(np.zeros((9, 5), np.float16), np.array([row]))


def test_every_half_becomes_its_single() -> None:
    table = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(-1, 1)
    found = _native.table_rows(table, np.arange(1 << 16))
    expected = table.astype(np.float32)
    np.testing.assert_array_equal(found, expected)
    is_number = ~np.isnan(expected)
    assert found[is_number].tobytes() == expected[is_number].tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 7, 70])
def test_all_finite(value: float, place: int) -> None:
    values = np.full(71, np.finfo(np.float32).max, np.float32)
    assert _native.all_finite(values)
    values[place] = value
    assert not _native.all_finite(values)
