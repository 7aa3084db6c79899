"""Tiny autoencoder: latents to pixels and back in a fraction of the time, for previews and drafts.

Source: the published TAESD networks, which learned to imitate Stable Diffusion's autoencoders;
parameter names of diffusers' AutoencoderTiny.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.config_fields import MAX_LAYERS, read_fields

# What diffusers can vary and the published networks do not. They read and write latents as the
# U-Net has them.
FIXED = {
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "scaling_factor": 1.0,
    "shift_factor": 0.0,
}
# How latents are stored in pictures, and what training left behind.
HARMLESS = ("latent_magnitude", "latent_shift", "force_upcast", "block_out_channels")
_LISTS = (
    "encoder_block_out_channels",
    "decoder_block_out_channels",
    "num_encoder_blocks",
    "num_decoder_blocks",
)
BOUND = 3.0  # latents are bent to stay between minus and plus this


@dataclass(frozen=True)
class TinyVAEConfig:
    """Describe a tiny autoencoder; fields carry the names of diffusers' ``config.json``.

    Either half may be missing, and then has no blocks.
    """

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    latent_channels: int = 4
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a network."""
        for half in ("encoder", "decoder"):
            channels = getattr(self, f"{half}_block_out_channels")
            blocks = getattr(self, f"num_{half}_blocks")
            if len(channels) != len(blocks) or len({*channels}) > 1:
                raise ConfigError.for_field(
                    f"tiny_vae.{half}_block_out_channels",
                    channels,
                    f"{len(blocks)} times the same number",
                )
            if max(blocks, default=0) > MAX_LAYERS:
                accepted = f"at most {MAX_LAYERS} each"
                raise ConfigError.for_field(f"tiny_vae.num_{half}_blocks", blocks, accepted)
        smallest = min(
            self.in_channels,
            self.out_channels,
            self.latent_channels,
            *self.encoder_block_out_channels,
            *self.decoder_block_out_channels,
        )
        if smallest < 1 or not (self.has_encoder or self.has_decoder):
            raise ConfigError.for_field(
                "tiny_vae", self.to_dict(), "at least one channel and block"
            )

    @property
    def has_encoder(self) -> bool:
        """Whether there is one."""
        return bool(self.num_encoder_blocks)

    @property
    def has_decoder(self) -> bool:
        """Whether there is one."""
        return bool(self.num_decoder_blocks)

    @property
    def downscales(self) -> set[int]:
        """Pixels along one side of a latent cell, of each half that there is."""
        halves = (self.num_encoder_blocks, self.num_decoder_blocks)
        return {int(2 ** (len(blocks) - 1)) for blocks in halves if blocks}

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> TinyVAEConfig:
        """Read diffusers' ``config.json``, a missing key as diffusers does.

        Lists without a number say that a half is missing, which diffusers cannot.
        """
        kind = config.get("_class_name", "AutoencoderTiny")
        if kind != "AutoencoderTiny":
            raise ConfigError.for_field("tiny_vae._class_name", kind, "AutoencoderTiny")
        empty: dict[str, Any] = {name: () for name in _LISTS if config.get(name) == []}
        rest = {name: value for name, value in config.items() if name not in empty}
        return cls(**empty, **read_fields(cls, rest, "tiny_vae", FIXED, HARMLESS))

    def to_dict(self) -> dict[str, Any]:
        """Return the config as diffusers' AutoencoderTiny reads it."""
        values = {name: list(v) if name in _LISTS else v for name, v in asdict(self).items()}
        return {"_class_name": "AutoencoderTiny", **FIXED, **values}


class _Block(nn.Module):
    """Add the result of three convolutions to the input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class _Half(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def _encoder(config: TinyVAEConfig) -> _Half:
    layers: list[nn.Module] = []
    width = config.encoder_block_out_channels[0]
    for level, count in enumerate(config.num_encoder_blocks):
        if level == 0:
            layers.append(nn.Conv2d(config.in_channels, width, 3, padding=1))
        else:
            layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False))
        layers += [_Block(width) for _ in range(count)]
    layers.append(nn.Conv2d(width, config.latent_channels, 3, padding=1))
    return _Half(layers)


def _decoder(config: TinyVAEConfig) -> _Half:
    width = config.decoder_block_out_channels[0]
    layers: list[nn.Module] = [nn.Conv2d(config.latent_channels, width, 3, padding=1), nn.ReLU()]
    for level, count in enumerate(config.num_decoder_blocks):
        layers += [_Block(width) for _ in range(count)]
        if level < len(config.num_decoder_blocks) - 1:
            layers.append(nn.Upsample(scale_factor=2.0, mode="nearest"))
            layers.append(nn.Conv2d(width, width, 3, padding=1, bias=False))
        else:
            layers.append(nn.Conv2d(width, config.out_channels, 3, padding=1))
    return _Half(layers)


class TinyAutoencoder(nn.Module):
    """Hold encoder and decoder, or one of them; latents are scaled, as the U-Net has them."""

    def __init__(self, config: TinyVAEConfig) -> None:
        super().__init__()
        self.config = config
        if config.has_encoder:
            self.encoder = _encoder(config)
        if config.has_decoder:
            self.decoder = _decoder(config)

    def encode(self, images: Tensor) -> Tensor:
        """Return latents [B,C,h,w] of images [B,3,H,W] in [-1,1]."""
        out: Tensor = self.encoder(images.add(1).div(2))
        return out

    def decode(self, latents: Tensor) -> Tensor:
        """Return images [B,3,H,W], nominally in [-1,1], of latents [B,C,h,w]."""
        out: Tensor = self.decoder(torch.tanh(latents / BOUND) * BOUND)
        return out.mul(2).sub(1)
