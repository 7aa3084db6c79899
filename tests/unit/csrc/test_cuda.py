"""The CUDA kernels against the CPU's, and what a machine or build without CUDA says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tolerances import assert_close

from sdengine import _native
from sdengine.errors import DeviceError, OutOfMemoryError

Array = np.ndarray[Any, np.dtype[Any]]


def on_device(array: Array) -> _native.CudaBuffer:
    buffer = _native.CudaBuffer(array.nbytes)
    buffer.upload(array)
    return buffer


def from_device(buffer: _native.CudaBuffer, like: Array) -> Array:
    array = np.empty_like(like)
    buffer.download(array)
    return array


@pytest.mark.gpu
@pytest.mark.parametrize("R", [1, 2, 5, 8])
@pytest.mark.parametrize("shape", [(1, 4, 5, 7), (2, 4, 64, 64), (8, 16, 160, 160)], ids=str)
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("step", [None, 2])
def test_guided_step(R: int, shape: tuple[int, ...], guided: bool, step: int | None) -> None:
    rng = np.random.default_rng(0)
    registers = rng.standard_normal((R, *shape), dtype=np.float32)
    rows = shape[0] * (2 if guided else 1)
    noise_pred = rng.standard_normal((rows, *shape[1:]), dtype=np.float32)
    noise = rng.standard_normal(shape, dtype=np.float32)
    table = rng.standard_normal((3, R * R + 2 * R))
    row = table[step or 0]
    A, b, d = row[: R * R].reshape(R, R).copy(), row[R * R : -R].copy(), row[-R:].copy()
    step_index = on_device(np.array([step or 0], np.int32))
    device = [on_device(array) for array in (registers, noise_pred, noise, table)]
    flag = on_device(np.zeros(1, np.int32))

    _native.cuda_guided_step(
        registers=device[0].address,
        noise_pred=device[1].address,
        noise=device[2].address,
        num_elements=noise.size,
        has_guidance=guided,
        guidance_scale=7.5,
        table=device[3].address,
        step=0 if step is None else step_index.address,
        num_registers=R,
        not_finite=flag.address,
    )
    _native.cuda_synchronize()
    assert _native.guided_step(registers, noise_pred, 7.5, A, b, d, noise)
    assert_close("guided_step", "float32", from_device(device[0], registers), registers)
    assert from_device(flag, np.zeros(1, np.int32)) == [0]


@pytest.mark.gpu
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_guided_step_reports_what_is_not_finite(value: float) -> None:
    registers = np.zeros((1, 1, 4, 64, 64), np.float32)
    noise_pred = np.zeros((1, 4, 64, 64), np.float32)
    noise_pred[0, 3, 63, 63] = value
    device = [on_device(a) for a in (registers, noise_pred, np.array([[1.0, 1.0, 0.0]]))]
    flag = on_device(np.zeros(1, np.int32))
    values, predicted, table = (buffer.address for buffer in device)
    _native.cuda_guided_step(
        values, predicted, 0, noise_pred.size, False, 1.0, table, 0, 1, flag.address
    )
    assert from_device(flag, np.zeros(1, np.int32)) == [1]


@pytest.mark.gpu
@pytest.mark.parametrize("copies", [1, 2])
def test_scale_duplicate(copies: int) -> None:
    latents = np.random.default_rng(1).standard_normal((3, 4, 33, 7), dtype=np.float32)
    source, scales = on_device(latents), on_device(np.array([1.0, 0.07]))
    step = on_device(np.array([1], np.int32))
    expected = np.empty((3 * copies, 4, 33, 7), np.float32)
    target = on_device(expected)
    _native.cuda_scale_duplicate(
        source.address, latents.size, scales.address, step.address, copies, target.address
    )
    _native.scale_duplicate(latents, 0.07, expected)
    np.testing.assert_array_equal(from_device(target, expected), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (2, 3, 33, 17), (1, 3, 1024, 1024)], ids=str)
def test_images_to_uint8(shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(2).uniform(-1.2, 1.2, shape).astype(np.float32)
    expected = _native.images_to_uint8(images)
    source, target = on_device(images), on_device(expected)
    flag = on_device(np.zeros(1, np.int32))
    _native.cuda_images_to_uint8(
        source.address, shape[0], shape[2] * shape[3], target.address, flag.address
    )
    np.testing.assert_array_equal(from_device(target, expected), expected)
    assert from_device(flag, np.zeros(1, np.int32)) == [0]


@pytest.mark.gpu
def test_device_memory() -> None:
    info = _native.cuda_device_info()
    assert 0 < info["free_bytes"] <= info["total_bytes"]
    with pytest.raises(OutOfMemoryError, match="allocating"):
        _native.CudaBuffer(info["total_bytes"] * 2)
    buffer = _native.CudaBuffer(4)
    with pytest.raises(ValueError, match="array: has 8 bytes, the buffer 4"):
        buffer.upload(np.zeros(8, np.uint8))


@pytest.mark.skipif(_native.cuda_available()[0], reason="this machine has a usable NVIDIA GPU")
def test_without_a_gpu_every_entry_raises() -> None:
    with pytest.raises(DeviceError):
        _native.CudaBuffer(16)
    with pytest.raises(DeviceError):
        _native.cuda_device_info()
    with pytest.raises(DeviceError):
        _native.cuda_synchronize()
    with pytest.raises(DeviceError):
        _native.cuda_guided_step(0, 0, 0, 1, False, 1.0, 0, 0, 1, 0)
    with pytest.raises(DeviceError):
        _native.cuda_scale_duplicate(0, 1, 0, 0, 1, 0)
    with pytest.raises(DeviceError):
        _native.cuda_images_to_uint8(0, 1, 1, 0, 0)
