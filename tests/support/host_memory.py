"""Arrays over memory of the host that the native runtime names by address."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


def memory_at(address: int, dtype: DTypeLike, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Give an array over memory, which must live as long as the array is used."""
    size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
    content: Any = (ctypes.c_ubyte * size_bytes).from_address(address)
    return np.frombuffer(content, dtype).reshape(shape)
