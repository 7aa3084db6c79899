"""The KL-regularised autoencoder: pixels to latents and back.

Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al. 2022),
section 3.1; parameter names of diffusers' AutoencoderKL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.config_fields import read_fields
from sdengine.models.layers import (
    Downsample2D,
    ResnetBlock2D,
    SpatialSelfAttention,
    Upsample2D,
)
from sdengine.models.ops import OpsModule

_EPS = 1e-6
_ENCODER_BLOCK, _DECODER_BLOCK = "DownEncoderBlock2D", "UpDecoderBlock2D"
# What diffusers can vary and the published Stable Diffusion autoencoders do not.
FIXED = {
    "act_fn": "silu",
    "mid_block_add_attention": True,
}
# Where diffusers computes in fp32 besides, and what training left behind.
HARMLESS = ("down_block_types", "force_upcast", "up_block_types")
_BLOCK_TYPES = {"down_block_types": _ENCODER_BLOCK, "up_block_types": _DECODER_BLOCK}
_DEFAULTS = {"block_out_channels": [64], "layers_per_block": 1, "sample_size": 32}

_NOT_WRITTEN_AT_DEFAULT = (
    "latents_mean",
    "latents_std",
    "shift_factor",
    "use_post_quant_conv",
    "use_quant_conv",
)


@dataclass(frozen=True)
class VAEConfig:
    """Describe an autoencoder; fields carry the names of diffusers' ``config.json``.

    The U-Net's latents are the encoder's minus ``latents_mean``, through ``latents_std``, times
    ``scaling_factor``; ``shift_factor`` is one mean for every channel. Source: the pipelines of
    SDXL and of later models in diffusers.
    """

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int = 512
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a network."""
        for field in ("norm_num_groups", "in_channels", "out_channels"):
            if getattr(self, field) < 1:
                raise ConfigError.for_field(f"vae.{field}", getattr(self, field), "at least 1")
        for channels in self.block_out_channels:
            if channels <= 0 or channels % self.norm_num_groups:
                raise ConfigError.for_field(
                    "vae.block_out_channels",
                    self.block_out_channels,
                    f"positive multiples of norm_num_groups={self.norm_num_groups}",
                )
        if not self.block_out_channels or self.layers_per_block < 1 or self.latent_channels < 1:
            raise ConfigError.for_field("vae", self.to_dict(), "at least one block and layer")
        if self.scaling_factor <= 0:
            raise ConfigError.for_field("vae.scaling_factor", self.scaling_factor, "above 0")
        self._check_statistics()

    def _check_statistics(self) -> None:
        """Refuse means and deviations that are not one for each channel."""
        for field in ("latents_mean", "latents_std"):
            values = getattr(self, field)
            if values is not None and len(values) != self.latent_channels:
                raise ConfigError.for_field(
                    f"vae.{field}", values, f"{self.latent_channels} numbers or null"
                )
        if (self.latents_mean is None) != (self.latents_std is None):
            raise ConfigError("vae: latents_mean and latents_std need each other.")
        if self.latents_std is not None and min(self.latents_std) <= 0:
            raise ConfigError.for_field("vae.latents_std", self.latents_std, "numbers above 0")
        if self.shift_factor and self.latents_mean is not None:
            raise ConfigError("vae: shift_factor and latents_mean are two ways to say one thing.")

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and deviation of each channel of unscaled latents; None for 0 and 1."""
        if self.latents_mean is not None and self.latents_std is not None:
            return self.latents_mean, self.latents_std
        if self.shift_factor:
            return (self.shift_factor,) * self.latent_channels, (1.0,) * self.latent_channels
        return None

    @property
    def downscale(self) -> int:
        """Pixels along one side of a latent cell."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> VAEConfig:
        """Read diffusers' ``vae/config.json``, a missing key as diffusers does."""
        complete = {**_DEFAULTS, **config}
        values = cls(**read_fields(cls, complete, "vae", FIXED, HARMLESS))
        for key, only in _BLOCK_TYPES.items():
            expected = [only] * len(values.block_out_channels)
            if complete.get(key, [only]) != expected:
                raise ConfigError.for_field(f"vae.{key}", complete.get(key), repr(expected))
        return values

    def to_dict(self) -> dict[str, Any]:
        """Return the config as diffusers' AutoencoderKL reads it.

        Keys that the published networks do not set are left out at their defaults.
        """
        levels = len(self.block_out_channels)
        values = asdict(self)
        for field in _NOT_WRITTEN_AT_DEFAULT:
            if values[field] == getattr(VAEConfig, field):
                del values[field]
        return {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "down_block_types": [_ENCODER_BLOCK] * levels,
            "up_block_types": [_DECODER_BLOCK] * levels,
            **values,
        }


class _Level(nn.Module):
    """Run residual blocks at one resolution, then change the resolution where asked."""

    def __init__(self, channels: list[int], groups: int, *, sampler: nn.Module | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(a, b, groups=groups, eps=_EPS) for a, b in pairwise(channels)
        )
        if isinstance(sampler, Downsample2D):
            self.downsamplers = nn.ModuleList([sampler])
        elif sampler is not None:
            self.upsamplers = nn.ModuleList([sampler])
        self.samplers = [name for name in ("downsamplers", "upsamplers") if hasattr(self, name)]

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for name in self.samplers:
            x = getattr(self, name)[0](x)
        return x


class _MidBlock(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels, channels, groups=groups, eps=_EPS) for _ in range(2)
        )
        self.attentions = nn.ModuleList([SpatialSelfAttention(channels, groups=groups, eps=_EPS)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.attentions[0](self.resnets[0](x))
        out: Tensor = self.resnets[1](x)
        return out


class Encoder(OpsModule):
    """Map images [B,3,H,W] to moments [B,2*latent_channels,H/8,W/8]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            channels = [widths[max(level - 1, 0)]] + [width] * config.layers_per_block
            last = level == len(widths) - 1
            down = None if last else Downsample2D(width, padding=0)
            self.down_blocks.append(_Level(channels, groups, sampler=down))
        self.mid_block = _MidBlock(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        x = self.ops.group_norm(self.conv_norm_out, x, silu=True)
        out: Tensor = self.conv_out(x)
        return out


class Decoder(OpsModule):
    """Map latents [B,latent_channels,h,w] to images [B,3,8h,8w]."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = _MidBlock(widths[0], groups)
        self.up_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            channels = [widths[max(level - 1, 0)]] + [width] * (config.layers_per_block + 1)
            up = None if level == len(widths) - 1 else Upsample2D(width)
            self.up_blocks.append(_Level(channels, groups, sampler=up))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], eps=_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        x = self.ops.group_norm(self.conv_norm_out, x, silu=True)
        out: Tensor = self.conv_out(x)
        return out


class AutoencoderKL(nn.Module):
    """Hold encoder and decoder; latents here are unscaled (scaling_factor is the caller's).

    Mean and deviation of the channels, where the configuration has them, are taken off and put back
    here, so that a caller knows the one factor alone.
    """

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        moments, channels = 2 * config.latent_channels, config.latent_channels
        if config.use_quant_conv:
            self.quant_conv = nn.Conv2d(moments, moments, 1)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Return moments [B,2C,h,w] of images in [-1,1]: the latents' mean, then log-variance."""
        out: Tensor = self.encoder(images)
        if self.config.use_quant_conv:
            out = self.quant_conv(out)
        if self.config.statistics is not None:
            means, deviations = self.config.statistics
            spread = [1.0] * len(means)
            out = out - _channels([*means, *(2 * math.log(d) for d in deviations)], out)
            out = out * _channels([*(1 / d for d in deviations), *spread], out)
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B,3,H,W], nominally in [-1,1], of unscaled latents [B,C,h,w]."""
        if self.config.statistics is not None:
            means, deviations = self.config.statistics
            latents = latents * _channels(deviations, latents) + _channels(means, latents)
        if self.config.use_post_quant_conv:
            latents = self.post_quant_conv(latents)
        out: Tensor = self.decoder(latents)
        return out

    def forward(self, images: Tensor) -> Tensor:
        """Reconstruct images [B,3,H,W] from the mean of their latents."""
        mean = self.encode(images).chunk(2, dim=1)[0]
        return self.decode(mean)


def _channels(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a number for each channel [1,C,1,1], a constant of the graph."""
    return torch.tensor(values, dtype=like.dtype, device=like.device).reshape(1, -1, 1, 1)


def sample_latents(moments: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw latents [B,C,h,w] from the Gaussian that moments [B,2C,h,w] describe."""
    mean, log_variance = moments.chunk(2, dim=1)
    std = torch.exp(0.5 * log_variance.clamp(-30.0, 20.0))
    noise = torch.randn(mean.shape, generator=generator, device=mean.device).to(mean.dtype)
    return mean + std * noise
