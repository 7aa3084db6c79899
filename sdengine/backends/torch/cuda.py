"""The torch-cuda backend: the networks run eagerly on an NVIDIA GPU; its baseline."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from sdengine.backends.torch.eager import STORED, TorchBackend
from sdengine.bundle.reader import Bundle
from sdengine.errors import BackendUnavailableError, ConfigError

if TYPE_CHECKING:
    from sdengine.models.contracts import NetworkContract


class TorchCudaBackend(TorchBackend):
    """Run bundles of target `torch` on the GPU, as torch does by default.

    A network's weights are on the GPU once, whatever the sizes that it is loaded for.

    Args:
        device: where networks compute.
    """

    name = "torch-cuda"

    def __init__(self, device: str = "cuda") -> None:
        self.device = device
        self._weights: weakref.WeakValueDictionary[tuple[Path, str, torch.dtype], nn.Module] = (
            weakref.WeakValueDictionary()
        )

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
        if precision != "auto" and precision not in STORED:
            raise ConfigError.for_field("precision", precision, f"auto, {', '.join(STORED)}")
        chosen = stored if precision == "auto" else precision
        if chosen == "bf16" and not self._has_bf16():
            raise BackendUnavailableError(
                "this GPU does not compute in bf16; compute capability 8.0 and newer do. Ask for "
                "--precision fp16 or fp32."
            )
        return chosen

    def _dtype(self, bundle: Bundle, network: str, precision: str) -> torch.dtype:
        stored = self.resolve(precision, bundle.manifest.precision)
        has_sizes = bundle.manifest.architecture.unet.size_conditioning != "none"
        if stored == "fp16" and network.startswith("vae") and has_sizes:
            # The values of SDXL's published autoencoder leave the range of fp16.
            return torch.bfloat16 if self._has_bf16() else torch.float32
        return STORED[stored]

    def _contract(self, bundle: Bundle, network: str, dtype: torch.dtype) -> NetworkContract:
        key = bundle.root, network, dtype
        module = self._weights.get(key)
        if module is None:
            module = self._read(bundle, network, dtype)
            self._prepare(network, module)
            self._weights[key] = module
        return self._describe(bundle, network, module)

    def _prepare(self, network: str, module: nn.Module) -> None:
        """Change a network just read into what shall be computed."""

    def _has_bf16(self) -> bool:
        return self.device == "cpu" or torch.cuda.get_device_capability(self.device) >= (8, 0)
