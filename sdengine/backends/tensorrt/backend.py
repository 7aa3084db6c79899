"""The tensorrt and tensorrt-rtx backends: networks as engines of NVIDIA's, run on its GPUs."""

from __future__ import annotations

import importlib
import importlib.util

from sdengine import _native
from sdengine.backends.base import DEFAULTS, Session, SessionOptions
from sdengine.backends.tensorrt.cache_file import capability_name, present_gpu
from sdengine.backends.tensorrt.session import TensorRtSession
from sdengine.bundle.reader import Bundle
from sdengine.errors import ConfigError


class TensorRtRtxBackend:
    """Run bundles of target `tensorrt-rtx` on GeForce RTX and professional RTX GPUs.

    `compute_capabilities`, times ten, are those that the vendor supports; none says nothing.
    """

    name = "tensorrt-rtx"
    module = "tensorrt_rtx"
    extra = "sdengine[tensorrt-rtx]"
    compute_capabilities: tuple[int, ...] = (75, 80, 86, 89, 120, 121)

    def available(self) -> tuple[bool, str]:
        """Say whether the module and a GPU that it runs on are there, or what is lacking."""
        if importlib.util.find_spec(self.module) is None:
            return False, f"{self.module} is not installed. Install it: pip install '{self.extra}'."
        usable, reason = _native.cuda_available()
        if not usable:
            return False, f"{reason}."
        gpu, capability = present_gpu()
        if self.compute_capabilities and capability not in self.compute_capabilities:
            known = ", ".join(map(capability_name, self.compute_capabilities))
            return False, (
                f"{self.module} does not run on {gpu}, which has compute capability "
                f"{capability_name(capability)}; it runs on {known}. Build for target tensorrt or "
                "torch."
            )
        return True, f"{self.module} {importlib.import_module(self.module).__version__}, {reason}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what the engines compute in, which was decided when they were built."""
        if precision not in ("auto", stored):
            raise ConfigError.for_field(
                "precision", precision, f"auto or {stored}, which the engines were built in"
            )
        return stored

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session that keeps to a limit of the GPU's memory; see `Backend.open`."""
        precision = self.resolve(options.precision, bundle.manifest.precision)
        return TensorRtSession(
            bundle, precision, self.module, options.memory_bytes, options.low_memory
        )


class TensorRtBackend(TensorRtRtxBackend):
    """Run bundles of target `tensorrt`, built for one GPU, on such a GPU."""

    name = "tensorrt"
    module = "tensorrt"
    extra = "sdengine[tensorrt]"
    compute_capabilities = ()
