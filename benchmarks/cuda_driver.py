"""CUDA driver: whether it loads PTX, asked of the driver itself, without torch or TensorRT."""

from __future__ import annotations

import ctypes

LIBRARY = "libcuda.so.1"
_LOG_BYTES = 8192
# Of the driver's enumerations CUdevice_attribute and CUjit_option.
_MAJOR, _MINOR = 75, 76
_ERROR_LOG, _ERROR_LOG_BYTES = 5, 6


class NoGpu(Exception):
    """There is no GPU to go on with."""


class Driver:
    """The CUDA driver, and a context on its first GPU.

    Raises:
        NoGpu: there is no driver or no GPU.
    """

    def __init__(self) -> None:
        try:
            self._cuda = ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise NoGpu(f"there is no CUDA driver: {error}") from None
        device, context, version = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_int()
        for name, arguments in (
            ("cuInit", (0,)),
            ("cuDriverGetVersion", (ctypes.byref(version),)),
            ("cuDeviceGet", (ctypes.byref(device), 0)),
            ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
            ("cuCtxSetCurrent", (context,)),
        ):
            code = getattr(self._cuda, name)(*arguments)
            if code:
                raise NoGpu(f"{name} answers {self._name(code)}")
        self._device = device
        self.version = version.value

    def capability(self) -> int:
        """Return the GPU's compute capability times ten."""
        parts = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, self._device)
            parts.append(value.value)
        return 10 * parts[0] + parts[1]

    def load(self, text: str) -> str:
        """Load PTX and give it up again; return "loaded", or what the driver says."""
        module, log = ctypes.c_void_p(), ctypes.create_string_buffer(_LOG_BYTES)
        options = (ctypes.c_int * 2)(_ERROR_LOG, _ERROR_LOG_BYTES)
        # Values of options are passed as pointers, numbers too.
        values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        code = self._cuda.cuModuleLoadDataEx(
            ctypes.byref(module), ctypes.c_char_p(text.encode()), 2, options, values
        )
        if code:
            return f"{self._name(code)}: {log.value.decode(errors='replace').strip()[:500]}"
        self._cuda.cuModuleUnload(module)
        return "loaded"

    def _name(self, code: int) -> str:
        name = ctypes.c_char_p()
        self._cuda.cuGetErrorName(code, ctypes.byref(name))
        return name.value.decode() if name.value else f"error {code}"
