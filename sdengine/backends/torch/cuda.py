"""The torch-cuda backend: the networks run eagerly on an NVIDIA GPU; its baseline."""

from __future__ import annotations

import torch

from sdengine.backends.base import (
    DEFAULTS,
    Session,
    SessionOptions,
    checked_device,
    require_no_split,
)
from sdengine.backends.memory_budget import MemoryBudget, unplanned_budget
from sdengine.backends.torch.eager import TorchSession
from sdengine.bundle.reader import Bundle
from sdengine.errors import BackendUnavailableError, ConfigError
from sdengine.machine import usable_processors
from sdengine.models.dtypes import TORCH_DTYPES


class TorchCudaSession(TorchSession):
    """One bundle of target `torch` on the GPU."""

    def __init__(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        budget: MemoryBudget,
        device: str = "cuda",
    ) -> None:
        super().__init__(bundle, precision, threads, budget, device)

    def dtype_of(self, network: str) -> torch.dtype:
        """Return what a network computes in: not fp16 where its values leave that range."""
        vae = self.bundle.manifest.architecture.vae
        if self.precision == "fp16" and network.startswith("vae") and vae.compute_fp32:
            return torch.bfloat16 if has_bf16(self.device) else torch.float32
        return super().dtype_of(network)


class TorchCudaBackend:
    """Run bundles of target `torch` on the GPU, as torch does by default.

    Args:
        device: where networks compute, unless a session is told a number.
    """

    name = "torch-cuda"

    def __init__(self, device: str = "cuda") -> None:
        self.device = device

    def available(self) -> tuple[bool, str]:
        """Say whether torch can use a GPU, and which, or what is lacking."""
        version = f"torch {torch.__version__}"
        if torch.version.cuda is None:
            return False, (
                f"{version} was built without CUDA. Install a build with it, as "
                "https://pytorch.org/get-started/locally says."
            )
        if not torch.cuda.is_available():
            return False, f"{version} finds no NVIDIA GPU; `sdengine doctor` says what there is."
        return True, f"{version}, {torch.cuda.get_device_name(self.device)}"

    def resolve(self, precision: str, stored: str = "fp16") -> str:
        """Return what the networks compute in: `auto` is what the bundle's weights are stored in.

        Raises:
            ConfigError: it is none of fp32, bf16 and fp16.
            BackendUnavailableError: bf16 on a GPU without it.
        """
        return self._resolve(precision, stored, self.device)

    def _resolve(self, precision: str, stored: str, device: str) -> str:
        if precision != "auto" and precision not in TORCH_DTYPES:
            raise ConfigError.for_field("precision", precision, f"auto, {', '.join(TORCH_DTYPES)}")
        chosen = stored if precision == "auto" else precision
        if chosen == "bf16" and not has_bf16(device):
            raise BackendUnavailableError(
                "this GPU does not compute in bf16; compute capability 8.0 and newer do. Ask for "
                "--precision fp16 or fp32."
            )
        return chosen

    def open(self, bundle: Bundle, options: SessionOptions = DEFAULTS) -> Session:
        """Make a session; see `Backend.open`. torch takes memory as it needs it."""
        require_no_split(self.name, options.split_guidance)
        device = self.device
        if options.device is not None:
            names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
            device = f"cuda:{checked_device(options.device, names)}"
        budget = unplanned_budget(self.name, options.memory_bytes)
        precision = self._resolve(options.precision, bundle.manifest.precision, device)
        # torch's own choice knows no quota.
        threads = options.threads or usable_processors().threads_by_quota
        return self._session(bundle, precision, threads, budget, device)

    def _session(
        self,
        bundle: Bundle,
        precision: str,
        threads: int | None,
        budget: MemoryBudget,
        device: str,
    ) -> TorchCudaSession:
        return TorchCudaSession(bundle, precision, threads, budget, device)


def has_bf16(device: str) -> bool:
    """Say whether a device of torch's computes in bf16."""
    return device == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0)
