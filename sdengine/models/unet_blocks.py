"""The levels of the U-Net: residual blocks, with or without transformers, and size changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdengine.models.attention import Transformer2DModel
from sdengine.models.layers import Downsample2D, ResnetBlock2D, Upsample2D


@dataclass(frozen=True)
class LevelSpec:
    """Say how the blocks of one level are made.

    Args:
        channels: of every block's result.
        depths: transformer blocks behind each residual block; empty where the level does not
            attend.
    """

    channels: int
    depths: tuple[int, ...]
    num_heads: int
    context_channels: int
    temb_channels: int
    groups: int
    eps: float
    linear_projection: bool

    def resnet(self, in_channels: int) -> ResnetBlock2D:
        """Make a residual block that ends in this level's channels."""
        return ResnetBlock2D(
            in_channels,
            self.channels,
            groups=self.groups,
            eps=self.eps,
            temb_channels=self.temb_channels,
        )

    def transformer(self, depth: int) -> Transformer2DModel:
        """Make a transformer of that many blocks over this level's channels."""
        return Transformer2DModel(
            self.channels,
            self.context_channels,
            num_heads=self.num_heads,
            depth=depth,
            groups=self.groups,
            linear_projection=self.linear_projection,
        )


class _Level(nn.Module):
    """Hold residual blocks and, where the level attends, a transformer behind each."""

    def __init__(self, spec: LevelSpec, in_channels: Sequence[int]) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(spec.resnet(c) for c in in_channels)
        self.has_attention = bool(spec.depths)
        if self.has_attention:
            self.attentions = nn.ModuleList(spec.transformer(depth) for depth in spec.depths)

    def _run(self, index: int, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        x = self.resnets[index](x, temb)
        if self.has_attention:
            x = self.attentions[index](x, context)
        return x


class DownBlock(_Level):
    """Run one level on the way down; every intermediate result is kept for the way up."""

    def __init__(self, spec: LevelSpec, in_channels: int, layers: int, *, downsample: bool) -> None:
        super().__init__(spec, [in_channels] + [spec.channels] * (layers - 1))
        self.has_downsampler = downsample
        if downsample:
            self.downsamplers = nn.ModuleList([Downsample2D(spec.channels)])

    def forward(
        self, x: Tensor, temb: Tensor, context: Tensor, feature: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the level's result and all intermediate results, the last included.

        A feature is added behind the last layer where the level attends, else to its result.
        """
        skips = []
        for index in range(len(self.resnets)):
            x = self._run(index, x, temb, context)
            if feature is not None and self.has_attention and index == len(self.resnets) - 1:
                x = x + feature
            skips.append(x)
        if self.has_downsampler:
            x = self.downsamplers[0](x)
            skips.append(x)
        if feature is not None and not self.has_attention:
            x = skips[-1] = x + feature
        return x, skips


class MidBlock(nn.Module):
    """Run residual block, transformer, residual block at the coarsest level.

    Where the level does not attend there is one residual block alone.
    """

    def __init__(self, spec: LevelSpec) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            spec.resnet(spec.channels) for _ in range(len(spec.depths) + 1)
        )
        self.attentions = nn.ModuleList(spec.transformer(depth) for depth in spec.depths)

    def forward(self, x: Tensor, temb: Tensor, context: Tensor) -> Tensor:
        """Return [B,C,h,w]."""
        x = self.resnets[0](x, temb)
        for attention, resnet in zip(self.attentions, self.resnets[1:], strict=True):
            x = resnet(attention(x, context), temb)
        return x


class UpBlock(_Level):
    """Run one level on the way up; each residual block also reads one kept result."""

    def __init__(
        self, spec: LevelSpec, below_channels: int, skip_channels: Sequence[int], *, upsample: bool
    ) -> None:
        before = [below_channels] + [spec.channels] * (len(skip_channels) - 1)
        super().__init__(spec, [b + s for b, s in zip(before, skip_channels, strict=True)])
        self.has_upsampler = upsample
        if upsample:
            self.upsamplers = nn.ModuleList([Upsample2D(spec.channels)])

    def forward(self, x: Tensor, skips: list[Tensor], temb: Tensor, context: Tensor) -> Tensor:
        """Return the level's result; takes what it reads off the end of skips."""
        for index in range(len(self.resnets)):
            x = self._run(index, torch.cat([x, skips.pop()], dim=1), temb, context)
        if self.has_upsampler:
            x = self.upsamplers[0](x)
        return x
