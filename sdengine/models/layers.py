"""Layers that several networks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdengine.models.ops import OpsModule


def quick_gelu(x: Tensor) -> Tensor:
    """Approximate GELU as CLIP was trained with.

    Source: "Gaussian Error Linear Units" (Hendrycks and Gimpel 2016), section 2.
    """
    return x * torch.sigmoid(1.702 * x)


class ResnetBlock2D(OpsModule):
    """Add a normalised, twice convolved copy of the input to the input.

    Args:
        in_channels, out_channels: channels of the input and of the result.
        groups: GroupNorm groups.
        eps: GroupNorm epsilon.
        temb_channels: width of the time embedding, or None for a block without one (VAE).

    Source: Wide residual networks as used in "Denoising Diffusion Probabilistic Models"
    (Ho et al. 2020, appendix B).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        groups: int,
        eps: float,
        temb_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        if temb_channels is not None:
            self.time_emb_proj = nn.Linear(temb_channels, out_channels)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.has_shortcut = in_channels != out_channels
        if self.has_shortcut:
            self.conv_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        """Return [B,out_channels,h,w] for x [B,in_channels,h,w] and temb [B,temb_channels]."""
        h = self.conv1(self.ops.group_norm(self.norm1, x, silu=True))
        added = None if temb is None else self.project_time(temb)
        h = self.conv2(self.ops.group_norm(self.norm2, h, silu=True, time_embedding=added))
        out: Tensor = (self.conv_shortcut(x) if self.has_shortcut else x) + h
        return out

    def project_time(self, temb: Tensor) -> Tensor:
        """Return [B,out_channels], what every position is moved by, for temb [B,temb_channels]."""
        out: Tensor = self.time_emb_proj(F.silu(temb))
        return out


class Downsample2D(nn.Module):
    """Halve height and width by a convolution of stride 2.

    With ``padding=0`` a row and a column of zeros are added at the bottom and the right only, as
    the VAE encoder was trained.
    """

    def __init__(self, channels: int, *, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.pad_after = padding == 0

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,h/2,w/2]."""
        if self.pad_after:
            x = F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Upsample2D(nn.Module):
    """Double height and width by nearest-neighbour repetition and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,2h,2w]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class SpatialSelfAttention(OpsModule):
    """Attend over all positions of a feature map with a single head (the VAE's middle block)."""

    def __init__(self, channels: int, *, groups: int, eps: float) -> None:
        super().__init__()
        # A number, because taken from a traced tensor's shape it would become graph nodes.
        self.channels = channels
        self.group_norm = nn.GroupNorm(groups, channels, eps=eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        # A list of one, because the published parameter is called `to_out.0`.
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,h,w]."""
        b, c, h, w = x.shape
        normed = self.ops.group_norm(self.group_norm, x)
        tokens = normed.flatten(2).transpose(1, 2)  # [B, h*w, C]
        q, k, v = (
            f(tokens).unflatten(2, (1, self.channels)).transpose(1, 2)  # [B,1,h*w,C]
            for f in (self.to_q, self.to_k, self.to_v)
        )
        out = self.ops.attention(q, k, v, self.channels**-0.5)
        out = self.to_out[0](out.transpose(1, 2).flatten(2))
        result: Tensor = x + out.transpose(1, 2).reshape(b, c, h, w)
        return result
