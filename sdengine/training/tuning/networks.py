"""Networks of a checkpoint as a training reads them: frozen, on one device, in their precision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed

from sdengine.building.architecture import describe
from sdengine.bundle.architecture import Architecture
from sdengine.checkpoints import Checkpoint
from sdengine.errors import ConfigError
from sdengine.models.attention import Transformer2DModel
from sdengine.models.contracts import size_multiple
from sdengine.models.dtypes import TORCH_DTYPES
from sdengine.models.layers import ResnetBlock2D
from sdengine.models.text_encoder import CLIPTextEncoder
from sdengine.models.unet import UNet2DConditionModel
from sdengine.models.vae import AutoencoderKL

# What is computed again on the way back instead of being kept: it holds most of the activations.
_RECOMPUTED = (ResnetBlock2D, Transformer2DModel)


@dataclass(frozen=True)
class Networks:
    """Hold the networks of a checkpoint without gradients.

    Args:
        checkpoint: that they were read from.
        architecture: as a bundle's manifest describes it.
        unet: in the precision, or in fp32 where it is trained.
        vae: in fp32.
        text_encoders: by name, as the U-Net.
        precision: what is computed in, a key of TORCH_DTYPES.
        device: where.
    """

    checkpoint: Checkpoint
    architecture: Architecture
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: dict[str, CLIPTextEncoder]
    precision: str
    device: torch.device

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        precision: str,
        device: torch.device,
        trained: Iterable[str] = (),
    ) -> Networks:
        """Read a checkpoint's networks.

        Args:
            checkpoint: of Stable Diffusion 1, 2 or XL.
            precision: what frozen networks are held and computed in.
            device: where they go.
            trained: networks that are held in fp32, because their own weights are trained.

        Raises:
            CheckpointError: it is damaged.
            ConfigError: its U-Net reads more than latents, timestep and text.
        """
        check_trainable(checkpoint)
        trained = tuple(trained)

        def placed(part: str) -> nn.Module:
            kept = part == "vae" or part in trained
            dtype = torch.float32 if kept else TORCH_DTYPES[precision]
            return checkpoint.load(part, dtype).to(device).requires_grad_(False)

        unet, vae = placed("unet"), placed("vae")
        assert isinstance(unet, UNet2DConditionModel) and isinstance(vae, AutoencoderKL)
        encoders: dict[str, CLIPTextEncoder] = {}
        for part in checkpoint.text_encoder_configs:
            encoder = placed(part)
            assert isinstance(encoder, CLIPTextEncoder)
            encoders[part] = encoder
        return cls(checkpoint, describe(checkpoint), unet, vae, encoders, precision, device)

    @property
    def size_multiple(self) -> int:
        """What the sides of pictures are multiples of."""
        return size_multiple(self.checkpoint.unet_config, self.checkpoint.vae_config.downscale)

    @property
    def own_resolution(self) -> int:
        """Side of the pictures that the U-Net was trained on."""
        return self.checkpoint.unet_config.sample_size * self.checkpoint.vae_config.downscale

    def autocast(self) -> torch.autocast:
        """Return the context in which networks compute in the precision."""
        return torch.autocast(
            self.device.type, TORCH_DTYPES[self.precision], enabled=self.precision != "fp32"
        )

    def scaled(self, latents: Tensor) -> Tensor:
        """Return latents as the U-Net reads them, on the device."""
        return latents.to(self.device) * self.checkpoint.vae_config.scaling_factor


def check_trainable(checkpoint: Checkpoint) -> None:
    """Refuse checkpoints whose U-Nets read what no data says.

    Raises:
        ConfigError: it is an inpainting or depth model, SDXL's refiner, or one that is distilled.
    """
    unet = checkpoint.unet_config
    accepted = "a checkpoint of Stable Diffusion 1, 2 or XL"
    if unet.in_channels != checkpoint.vae_config.latent_channels:
        raise ConfigError.for_field(
            "checkpoint", f"a U-Net of {unet.in_channels} input channels", accepted,
            "Train the model that it was made from; what is trained fits both.",
        )  # fmt: skip
    if unet.time_cond_proj_dim is not None:
        raise ConfigError.for_field(
            "checkpoint", "a model distilled with its guidance", accepted,
            "Train the model that it was distilled from.",
        )  # fmt: skip
    if checkpoint.requires_aesthetic_score:
        raise ConfigError.for_field("checkpoint", "SDXL's refiner", accepted)


def matched(x: Tensor, weight: Tensor) -> Tensor:
    """Return what a layer reads in its weight's type, where autocast does not see to that."""
    if x.dtype == weight.dtype or torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(weight.dtype)


def recompute(module: nn.Module) -> None:
    """Let a network's blocks be computed again for their gradients, to save memory."""
    for block in module.modules():
        if isinstance(block, _RECOMPUTED):
            vars(block)["forward"] = functools.partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    out: Tensor = recomputed(forward, *inputs, use_reentrant=False)
    return out
