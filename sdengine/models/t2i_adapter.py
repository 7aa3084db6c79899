"""T2I-Adapter: a small network that turns a control picture into features, once a request.

The features are added to what the U-Net computes on its way down, so that all behind it follows.

Source: "T2I-Adapter: Learning Adapters to Dig out More Controllable Ability for Text-to-Image
Diffusion Models" (Mou et al. 2023), section 3. Parameter names of diffusers' T2IAdapter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sdengine.errors import ConfigError
from sdengine.models.config_fields import read_fields

CLASS = "T2IAdapter"
_KINDS = ("full_adapter", "full_adapter_xl", "light_adapter")
_NARROWER = 4  # inside the blocks of a light adapter


@dataclass(frozen=True)
class T2IAdapterConfig:
    """Describe a T2I-Adapter; fields carry the names of diffusers' ``config.json``.

    Args:
        in_channels: of the picture.
        channels: of the features; a light adapter's last is there twice.
        num_res_blocks: of each level.
        downscale_factor: pixels along a side of what the first convolution reads as one.
        adapter_type: "full_adapter" and "light_adapter" halve each level, "full_adapter_xl" the
            third alone.
    """

    in_channels: int = 3
    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    num_res_blocks: int = 2
    downscale_factor: int = 8
    adapter_type: str = _KINDS[0]

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a network."""
        if self.adapter_type not in _KINDS:
            raise ConfigError.for_field(
                "t2i_adapter.adapter_type", self.adapter_type, f"one of {', '.join(_KINDS)}"
            )
        divisor = _NARROWER if self.adapter_type == "light_adapter" else 1
        if not self.channels or any(c < 1 or c % divisor for c in self.channels):
            accepted = f"multiples of {divisor}, from 1"
            raise ConfigError.for_field("t2i_adapter.channels", self.channels, accepted)
        for field, most in (("in_channels", 64), ("num_res_blocks", 64), ("downscale_factor", 64)):
            if not 1 <= getattr(self, field) <= most:
                raise ConfigError.for_field(
                    f"t2i_adapter.{field}", getattr(self, field), f"from 1 to {most}"
                )

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> T2IAdapterConfig:
        """Read diffusers' ``config.json`` of a T2I-Adapter, a missing key as diffusers does."""
        return cls(**read_fields(cls, config, "t2i_adapter", {}, ()))

    def to_dict(self) -> dict[str, Any]:
        """Return the config as diffusers' T2IAdapter reads it."""
        return {
            "_class_name": CLASS,
            "in_channels": self.in_channels,
            "channels": list(self.channels),
            "num_res_blocks": self.num_res_blocks,
            "downscale_factor": self.downscale_factor,
            "adapter_type": self.adapter_type,
        }

    @property
    def features(self) -> tuple[tuple[int, int], ...]:
        """Channels of each feature, and the pixels of the picture along a side of its cells."""
        channels = self.channels
        if self.adapter_type == "light_adapter":
            channels = (*channels, channels[-1])
        if self.adapter_type == "full_adapter_xl":
            halved = [index >= 2 for index in range(len(channels))]
            return tuple(
                (c, self.downscale_factor << h) for c, h in zip(channels, halved, strict=True)
            )
        return tuple((c, self.downscale_factor << level) for level, c in enumerate(channels))


class _ResnetBlock(nn.Module):
    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, kernel, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block2(F.relu(self.block1(x))) + x
        return out


class _Block(nn.Module):
    """One level: perhaps halved, perhaps to other channels, residual blocks."""

    def __init__(self, before: int, channels: int, layers: int, *, halves: bool) -> None:
        super().__init__()
        self.halves, self.widens = halves, before != channels
        if self.widens:
            self.in_conv = nn.Conv2d(before, channels, 1)
        self.resnets = nn.Sequential(*(_ResnetBlock(channels, 1) for _ in range(layers)))

    def forward(self, x: Tensor) -> Tensor:
        if self.halves:
            x = F.avg_pool2d(x, 2)
        if self.widens:
            x = self.in_conv(x)
        out: Tensor = self.resnets(x)
        return out


class _LightBlock(nn.Module):
    """One level that works in a quarter of its channels."""

    def __init__(self, before: int, channels: int, layers: int, *, halves: bool) -> None:
        super().__init__()
        self.halves, inner = halves, channels // _NARROWER
        self.in_conv = nn.Conv2d(before, inner, 1)
        self.resnets = nn.Sequential(*(_ResnetBlock(inner, 3) for _ in range(layers)))
        self.out_conv = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.halves:
            x = F.avg_pool2d(x, 2)
        out: Tensor = self.out_conv(self.resnets(self.in_conv(x)))
        return out


class _Levels(nn.Module):
    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        read = config.in_channels * config.downscale_factor**2
        is_light = config.adapter_type == "light_adapter"
        channels = [each for each, _ in config.features]
        divisors = [config.downscale_factor, *(divisor for _, divisor in config.features)]
        before = [read if is_light else channels[0], *channels]
        if not is_light:
            self.conv_in = nn.Conv2d(read, channels[0], 3, padding=1)
        block = _LightBlock if is_light else _Block
        self.body = nn.ModuleList(
            block(before[i], width, config.num_res_blocks, halves=divisors[i + 1] > divisors[i])
            for i, width in enumerate(channels)
        )
        self.is_light = is_light

    def forward(self, x: Tensor) -> list[Tensor]:
        if not self.is_light:
            x = self.conv_in(x)
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features


class T2IAdapter(nn.Module):
    """Turn a control picture into features."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = _Levels(config)

    def forward(self, hint: Tensor) -> list[Tensor]:
        """Return the features [B,channels,H/divisor,W/divisor] at scale 1.

        Args:
            hint: [B,in_channels*r*r,H/r,W/r] control picture in [0,1], the r*r pixels of a cell as
                channels, row by row, where r is downscale_factor.
        """
        features: list[Tensor] = self.adapter(hint)
        return features
