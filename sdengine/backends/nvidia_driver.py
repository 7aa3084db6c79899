"""Driver of NVIDIA GPUs: which CUDA it knows, asked without making a context on a GPU."""

from __future__ import annotations

import ctypes
import sys

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


def cuda_version() -> int | None:
    """Return the newest CUDA that the driver knows, as CUDA counts: 13000 is 13.0.

    Returns:
        None where no driver is installed.

    Source: `cuDriverGetVersion` in NVIDIA's "CUDA Driver API", version management.
    """
    try:
        library = ctypes.CDLL(LIBRARY)
        version = ctypes.c_int(0)
        library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return version.value or None
