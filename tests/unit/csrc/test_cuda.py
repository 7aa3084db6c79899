"""GPUs as the native extension names them, and what a machine or build without one says."""

from __future__ import annotations

import numpy as np
import pytest

from sdengine import _native
from sdengine.errors import DeviceError, OutOfMemoryError


@pytest.mark.gpu
def test_device_memory() -> None:
    info = _native.cuda_device_info()
    assert 0 < _native.cuda_free_bytes() <= info["total_bytes"]
    with pytest.raises(OutOfMemoryError, match="allocating"):
        _native.CudaBuffer(info["total_bytes"] * 2)
    buffer = _native.CudaBuffer(4)
    with pytest.raises(ValueError, match="array: has 8 bytes, the buffer 4"):
        buffer.upload(np.zeros(8, np.uint8))
    sent, received = np.array([1, 2, 3, 4], np.uint8), np.zeros(4, np.uint8)
    buffer.upload(sent)
    buffer.download(received)
    np.testing.assert_array_equal(received, sent)


@pytest.mark.skipif(_native.cuda_available()[0], reason="this machine has a usable NVIDIA GPU")
def test_without_a_gpu_every_entry_raises() -> None:
    with pytest.raises(DeviceError):
        _native.CudaBuffer(16)
    with pytest.raises(DeviceError):
        _native.cuda_device_info()
    with pytest.raises(DeviceError):
        _native.cuda_free_bytes()
    with pytest.raises(DeviceError):
        _native.cuda_synchronize()
    with pytest.raises(DeviceError):
        _native.cuda_device()
