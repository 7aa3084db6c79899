"""The triton backend: bundles of target `torch` on an NVIDIA GPU, without TensorRT."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sdengine import _native
from sdengine.backends.cache_file import driver_version
from sdengine.backends.kernel_choices import ChoiceKey, KeptChoices
from sdengine.backends.memory_budget import MemoryBudget
from sdengine.backends.torch.cuda import TorchCudaBackend, TorchCudaSession
from sdengine.backends.torch.eager import Compute, TorchModule
from sdengine.backends.torch.graphs import GraphedFunction, GraphPool
from sdengine.backends.torch.triton_model import prepare
from sdengine.backends.torch.triton_ops import Choice, TritonOps
from sdengine.backends.torch.triton_unet import Runtime, TritonUNet
from sdengine.backends.torch.variant_timing import VariantChoices, graph_timer
from sdengine.bundle.reader import Bundle
from sdengine.bundle.tensors import TensorSpec
from sdengine.errors import DeviceError
from sdengine.models.positional import PositionalUNet


class TritonSession(TorchCudaSession):
    """One bundle of target `torch` on the GPU, by Triton kernels and CUDA graphs.

    Args:
        bundle, precision, threads, budget, device: as for `TorchCudaSession`.
        cuda: torch's interface to streams and graphs.
        native: opens a GPU of a number in the native runtime.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        budget: MemoryBudget,
        device: str,
        cuda: Any,
        native: Callable[[int], _native.Device],
    ) -> None:
        super().__init__(bundle, precision, threads, budget, device)
        self._cuda = cuda
        self._pool = GraphPool(cuda)  # a bundle's networks never run at once
        self._ops: dict[str, TritonOps] = {}
        self._choices = _choices_of(device, cuda)
        number = torch.device(device).index or 0
        self._native_device = functools.cache(functools.partial(native, number))
        self._runtime = Runtime(device, cuda, self._pool, self._native_device, self._why_no_steps)

    def report(self) -> dict[str, tuple[Choice, ...]]:
        """Return by network which kernels computed what, as far as networks have run yet."""
        return {network: ops.report() for network, ops in self._ops.items()}

    def _prepare(self, network: str, module: nn.Module) -> None:
        prepare(module, self._ops.setdefault(network, TritonOps(choices=self._choices)))

    def _make(
        self,
        network: str,
        module: nn.Module,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        dtype: torch.dtype,
    ) -> TorchModule:
        if not isinstance(module, PositionalUNet):
            return super()._make(network, module, inputs, outputs, dtype)
        compute = self._compute(module)
        return TritonUNet(module, compute, inputs, outputs, dtype, self._threads, self._runtime)

    def _why_no_steps(self) -> str:
        """Say why the native runtime cannot run steps on the device; nothing where it can."""
        try:
            self._native_device()
        except DeviceError as error:
            return str(error)
        return ""

    def close(self) -> None:
        """Write down what kernels were found to be fastest, for later sessions."""
        super().close()
        if self._choices is not None:
            self._choices.save()

    def _compute(self, module: nn.Module) -> Compute:
        return GraphedFunction(module, self.device, self._cuda, self._pool)


class TritonBackend(TorchCudaBackend):
    """Run bundles of target `torch` on the GPU: Triton kernels, channels last, CUDA graphs.

    Args:
        device: where networks compute.
        cuda: torch's interface to streams and graphs.
        native: opens a GPU of a number in the native runtime.
    """

    name = "triton"

    def __init__(
        self,
        device: str = "cuda",
        cuda: Any = torch.cuda,
        native: Callable[[int], _native.Device] = _native.cuda_device,
    ) -> None:
        super().__init__(device)
        self._cuda = cuda
        self._native = native

    def available(self) -> tuple[bool, str]:
        """Say whether torch, triton and a GPU are there, and the versions or what is lacking."""
        usable, found = super().available()
        if not usable:
            return usable, found
        if importlib.util.find_spec("triton") is None:
            return False, "triton is not installed. Install it: pip install 'sdengine[kernels]'."
        from triton import __version__

        from sdengine.kernels.launching import interprets

        if interprets():
            return False, "TRITON_INTERPRET is set, so that triton would compute on the CPU."
        return True, f"triton {__version__}, {found}"

    def _session(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        budget: MemoryBudget,
        device: str,
    ) -> TritonSession:
        opened = (device, self._cuda, self._native)
        return TritonSession(bundle, precision, threads, budget, *opened)


def _choices_of(device: str, cuda: Any) -> VariantChoices | None:
    """Return which variants are fastest on a GPU; None for the interpreter, which times nothing."""
    if device == "cpu":
        return None
    from triton import __version__

    major, minor = cuda.get_device_capability(device)
    name, driver = cuda.get_device_name(device), driver_version()
    key = ChoiceKey(__version__, name, 10 * major + minor, driver)
    return VariantChoices(KeptChoices(key), graph_timer(cuda))
