"""The tensorrt and tensorrt-rtx backends: networks as engines of NVIDIA's, run on its GPUs."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from dataclasses import replace

from sdengine import _native
from sdengine.backends.base import DEFAULTS, Session, SessionOptions, checked_device
from sdengine.backends.cache_file import capability_name, present_gpu
from sdengine.backends.split_session import Half, SplitSession
from sdengine.backends.split_worker import SplitWorker
from sdengine.backends.tensorrt.session import TensorRtSession
from sdengine.backends.tensorrt.split import two_gpus
from sdengine.bundle.reader import Bundle
from sdengine.errors import BackendUnavailableError, ConfigError, DeviceError

_MAX_DEVICES = 64


class TensorRtRtxBackend:
    """Run bundles of target `tensorrt-rtx` on GeForce RTX and professional RTX GPUs.

    `compute_capabilities`, times ten, are those that the vendor supports; none says nothing.
    """

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
    extra = "sdengine[tensorrt-rtx]"
    compute_capabilities: tuple[int, ...] = (75, 80, 86, 89, 120, 121)

    def available(self) -> tuple[bool, str]:
        """Say whether the module and any GPU that it runs on are there, or what is lacking."""
        if importlib.util.find_spec(self.module) is None:
            return False, f"{self.module} is not installed. Install it: pip install '{self.extra}'."
        usable, found = _native.cuda_available()
        if not usable:
            return False, f"{found}."
        reasons = [self._refuses(*gpu) for gpu in _present_gpus()]
        if all(reasons):
            return False, next(iter(reasons), f"{found}, but no GPU describes itself.")
        return True, f"{self.module} {importlib.import_module(self.module).__version__}, {found}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what the engines compute in, which was decided when they were built."""
        if precision not in ("auto", stored):
            raise ConfigError.for_field(
                "precision", precision, f"auto or {stored}, which the engines were built in"
            )
        return stored

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session on a GPU that keeps to a limit of its memory; see `Backend.open`."""
        if options.split_guidance is not None:
            return self._open_split(bundle, options, options.split_guidance)
        device = 0
        if options.device is not None:
            device = checked_device(options.device, [name for name, _ in _present_gpus()])
        return self._open_on(device, bundle, options)

    def _open_split(self, bundle: Bundle, options: SessionOptions, places: str) -> Session:
        """Make a session of which two GPUs evaluate half of the U-Net's rows each."""
        first, second = two_gpus(places, options.device, _present_gpus())
        main = self._open_on(first, bundle, options)
        # Of the second one the U-Net and controls alone are used: nothing else stays there.
        other = self._open_on(second, bundle, replace(options, low_memory=True))
        halves = (
            Half(SplitWorker(f"sdengine-gpu-{first}"), main),
            Half(SplitWorker(f"sdengine-gpu-{second}"), other),
        )
        return SplitSession(bundle, main, halves)

    def _open_on(self, device: int, bundle: Bundle, options: SessionOptions) -> TensorRtSession:
        precision = self.resolve(options.precision, bundle.manifest.precision)
        reason = self._refuses(*present_gpu(device))
        if reason:
            raise BackendUnavailableError(f"backend {self.name} is not available: {reason}")
        return TensorRtSession(
            bundle, precision, self.module, options.memory_bytes, options.low_memory, device
        )

    def _refuses(self, gpu: str, capability: int) -> str:
        """Say why engines do not run on a GPU; nothing where they may."""
        if not self.compute_capabilities or capability in self.compute_capabilities:
            return ""
        known = ", ".join(map(capability_name, self.compute_capabilities))
        return (
            f"{self.module} does not run on {gpu}, which has compute capability "
            f"{capability_name(capability)}; it runs on {known}. Build for target tensorrt or "
            "torch."
        )


class TensorRtBackend(TensorRtRtxBackend):
    """Run bundles of target `tensorrt`, built for one GPU, on such a GPU."""

    name = "tensorrt"
    module = "tensorrt"
    extra = "sdengine[tensorrt]"
    compute_capabilities = ()


def _present_gpus() -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    with contextlib.suppress(DeviceError):
        while len(found) < _MAX_DEVICES:
            found.append(present_gpu(len(found)))
    return found
