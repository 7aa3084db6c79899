"""ControlNet: a trainable copy of the U-Net's way down that reads a control image.

Source: "Adding Conditional Control to Text-to-Image Diffusion Models" (Zhang et al. 2023),
section 3. Parameter names of diffusers' ControlNetModel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.config_fields import read_fields
from sdengine.models.unet import ConditionedEncoder, UNetConfig
from sdengine.models.unet_keys import FIXED as UNET_FIXED
from sdengine.models.unet_keys import HARMLESS as UNET_HARMLESS

_UP_OF = {"DownBlock2D": "UpBlock2D", "CrossAttnDownBlock2D": "CrossAttnUpBlock2D"}
_NOT_OF_CONTROLNETS = ("sample_size", "out_channels", "up_block_types", "time_cond_proj_dim")
FIXED = {"controlnet_conditioning_channel_order": "rgb"}


@dataclass(frozen=True)
class ControlNetConfig:
    """Describe a ControlNet: the U-Net it steers, and how it reads the control image.

    With `global_pool_conditions` its residuals count by their means over height and width, which
    whoever adds them takes.
    """

    unet: UNetConfig = field(default_factory=UNetConfig)
    conditioning_channels: int = 3
    conditioning_embedding_out_channels: tuple[int, ...] = (16, 32, 96, 256)
    global_pool_conditions: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a network."""
        widths = self.conditioning_embedding_out_channels
        if not widths or min(widths) < 1:
            raise ConfigError.for_field(
                "controlnet.conditioning_embedding_out_channels", widths, "positive widths"
            )
        if self.conditioning_channels < 1:
            raise ConfigError.for_field(
                "controlnet.conditioning_channels", self.conditioning_channels, "at least 1"
            )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> ControlNetConfig:
        """Read diffusers' ``config.json`` of a ControlNet, a missing key as diffusers does."""
        names = {one.name for one in fields(cls)} - {"unet"} | FIXED.keys()
        own = {key: value for key, value in config.items() if key in names}
        values = read_fields(cls, own, "controlnet", FIXED, ())
        shared = {key: value for key, value in config.items() if key not in names}
        down_types = read_fields(UNetConfig, shared, "controlnet", UNET_FIXED, UNET_HARMLESS).get(
            "down_block_types", UNetConfig.down_block_types
        )
        up_types = [_UP_OF.get(kind, kind) for kind in reversed(down_types)]
        values["unet"] = UNetConfig.from_dict({**shared, "up_block_types": up_types})
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the config as diffusers' ControlNetModel reads it."""
        shared = {k: v for k, v in self.unet.to_dict().items() if k not in _NOT_OF_CONTROLNETS}
        return {
            **shared,
            "_class_name": "ControlNetModel",
            "conditioning_channels": self.conditioning_channels,
            "conditioning_embedding_out_channels": list(self.conditioning_embedding_out_channels),
            "global_pool_conditions": self.global_pool_conditions,
        }


class ControlNetConditioningEmbedding(nn.Module):
    """Bring a control image to the latents' resolution and the first level's channels."""

    def __init__(self, in_channels: int, widths: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.blocks.append(nn.Conv2d(narrow, narrow, 3, padding=1))
            self.blocks.append(nn.Conv2d(narrow, wide, 3, padding=1, stride=2))
        self.conv_out = _zeroed(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Return [B,out_channels,H/8,W/8] for an image [B,in_channels,H,W]."""
        x = F.silu(self.conv_in(image))
        for block in self.blocks:
            x = F.silu(block(x))
        out: Tensor = self.conv_out(x)
        return out


class ControlNetModel(ConditionedEncoder):
    """Predict what to add to the U-Net's kept results; zero before training."""

    def __init__(self, config: ControlNetConfig) -> None:
        # The guidance embedding of a distilled U-Net is none of its ControlNet's inputs.
        super().__init__(replace(config.unet, time_cond_proj_dim=None))
        self.controlnet_config = config
        widths = config.unet.block_out_channels
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(
            config.conditioning_channels, config.conditioning_embedding_out_channels, widths[0]
        )
        self.controlnet_down_blocks = nn.ModuleList(
            _zeroed(nn.Conv2d(channels, channels, 1)) for channels in config.unet.residual_channels
        )
        self.controlnet_mid_block = _zeroed(nn.Conv2d(widths[-1], widths[-1], 1))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        controlnet_cond: Tensor,
        text_embeds: Tensor | None = None,
        time_ids: Tensor | None = None,
    ) -> tuple[list[Tensor], Tensor]:
        """Predict the residuals at scale 1.

        Args:
            sample: [B,in_channels,h,w] scaled latents, the U-Net's own input.
            timestep: [B], in training steps.
            encoder_hidden_states: [B,S,cross_attention_dim] text embeddings.
            controlnet_cond: [B,conditioning_channels,8h,8w] control image in [0,1].
            text_embeds, time_ids: as the U-Net's (SDXL).

        Returns:
            The U-Net's down_residuals and mid_residual.
        """
        temb = self.embed_time(timestep, sample.dtype, text_embeds, time_ids, None)
        x = self.conv_in(sample) + self.controlnet_cond_embedding(controlnet_cond)
        return self.residuals(x, temb, encoder_hidden_states)

    def residuals(
        self, x: Tensor, temb: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return what the copy of the U-Net's encoder gives for the hint laid on its first map."""
        x, kept = self.descend(x, temb, encoder_hidden_states)
        x = self.middle(x, temb, encoder_hidden_states)
        down = [conv(k) for conv, k in zip(self.controlnet_down_blocks, kept, strict=True)]
        return down, self.controlnet_mid_block(x)


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    # An untrained ControlNet must leave the U-Net as it is.
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv
