"""The triton backend: bundles of target `torch` on an NVIDIA GPU, without TensorRT."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import nn

from sdengine.backends.memory_budget import MemoryBudget
from sdengine.backends.torch.cuda import TorchCudaBackend, TorchCudaSession
from sdengine.backends.torch.eager import Compute
from sdengine.backends.torch.graphs import GraphedFunction, GraphPool
from sdengine.backends.torch.triton_model import prepare
from sdengine.backends.torch.triton_ops import Choice, TritonOps
from sdengine.bundle.reader import Bundle


class TritonSession(TorchCudaSession):
    """One bundle of target `torch` on the GPU, by Triton kernels and CUDA graphs.

    Args:
        bundle, precision, threads, budget, device: as for `TorchCudaSession`.
        cuda: torch's interface to streams and graphs.
    """

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        budget: MemoryBudget,
        device: str,
        cuda: Any,
    ) -> None:
        super().__init__(bundle, precision, threads, budget, device)
        self._cuda = cuda
        self._pool = GraphPool(cuda)  # a bundle's networks never run at once
        self._ops: dict[str, TritonOps] = {}

    def report(self) -> dict[str, tuple[Choice, ...]]:
        """Return by network which kernels computed what, as far as networks have run yet."""
        return {network: ops.report() for network, ops in self._ops.items()}

    def _prepare(self, network: str, module: nn.Module) -> None:
        prepare(module, self._ops.setdefault(network, TritonOps()))

    def _compute(self, module: nn.Module) -> Compute:
        return GraphedFunction(module, self.device, self._cuda, self._pool)


class TritonBackend(TorchCudaBackend):
    """Run bundles of target `torch` on the GPU: Triton kernels, channels last, CUDA graphs.

    Args:
        device: where networks compute.
        cuda: torch's interface to streams and graphs.
    """

    name = "triton"

    def __init__(self, device: str = "cuda", cuda: Any = torch.cuda) -> None:
        super().__init__(device)
        self._cuda = cuda

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
        self, bundle: Bundle, precision: str, threads: int | None, budget: MemoryBudget
    ) -> TritonSession:
        return TritonSession(bundle, precision, threads, budget, self.device, self._cuda)
