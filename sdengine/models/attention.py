"""Attention and the transformer that the U-Net and the ControlNet run over feature maps."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUP_NORM_EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention of tokens over a context, or over themselves.

    `attention_impl` chooses how: "sdpa" calls torch's fused function; "plain" writes out the two
    products, which under bf16 autocast on a CPU trains about 1.5 times faster.
    """

    def __init__(self, channels: int, context_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Kept as numbers: taken from a traced tensor's shape they would become graph nodes.
        self.head_dim = channels // num_heads
        self.scale = self.head_dim**-0.5
        self.attention_impl = "sdpa"
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        # A list of one, because the published parameter is called `to_out.0`.
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B,S,C] for x [B,S,C] and context [B,Sk,Cc]."""
        q, k, v = (
            tokens.unflatten(2, (self.num_heads, self.head_dim)).transpose(1, 2)  # [B,heads,S,d]
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        if self.attention_impl == "plain":
            weights = (q * self.scale) @ k.transpose(2, 3)
            out = weights.softmax(dim=-1).to(v.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        result: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return result


class GEGLU(nn.Module):
    """Gate one half of a projection by the GELU of the other.

    Source: "GLU Variants Improve Transformer" (Shazeer 2020), equation 6.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,S,inner]."""
        value, gate = self.proj(x).split(self.inner, dim=-1)
        out: Tensor = value * F.gelu(gate)
        return out


class FeedForward(nn.Module):
    """Widen fourfold through GEGLU and project back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Index 1 is the published networks' dropout, which does nothing at inference.
        self.net = nn.ModuleList(
            [GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,S,C]."""
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nn.Module):
    """Self-attention, cross-attention and feed-forward, each normalised first and added."""

    def __init__(self, channels: int, context_channels: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, context_channels, num_heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B,S,C]."""
        normed = self.norm1(x)
        x = x + self.attn1(normed, normed)
        x = x + self.attn2(self.norm2(x), context)
        out: Tensor = x + self.ff(self.norm3(x))
        return out


class Transformer2DModel(nn.Module):
    """Run transformer blocks over the positions of a feature map, and add its input.

    Args:
        channels: channels of the feature map.
        context_channels: width of the text embeddings.
        num_heads: attention heads.
        depth: number of transformer blocks.
        groups: GroupNorm groups.
        linear_projection: project tokens by linear layers (SD2, SDXL) instead of 1x1 convolutions.

    Source: "High-Resolution Image Synthesis with Latent Diffusion Models" (Rombach et al. 2022),
    section 3.3 and appendix E.2.1.
    """

    def __init__(
        self,
        channels: int,
        context_channels: int,
        *,
        num_heads: int,
        depth: int,
        groups: int,
        linear_projection: bool,
    ) -> None:
        super().__init__()
        self.linear_projection = linear_projection
        self.norm = nn.GroupNorm(groups, channels, eps=GROUP_NORM_EPS)
        if linear_projection:
            self.proj_in: nn.Module = nn.Linear(channels, channels)
        else:
            self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(channels, context_channels, num_heads) for _ in range(depth)
        )
        if linear_projection:
            self.proj_out: nn.Module = nn.Linear(channels, channels)
        else:
            self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Return [B,C,h,w]."""
        height, width = x.shape[2:]
        h = self.norm(x)
        if not self.linear_projection:
            h = self.proj_in(h)
        tokens = h.flatten(2).transpose(1, 2)  # [B, h*w, C]
        if self.linear_projection:
            tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        if self.linear_projection:
            tokens = self.proj_out(tokens)
        h = tokens.transpose(1, 2).unflatten(2, (height, width))
        if not self.linear_projection:
            h = self.proj_out(h)
        out: Tensor = x + h
        return out


def set_attention_impl(model: nn.Module, impl: str) -> None:
    """Choose "sdpa" or "plain" for every attention of a model."""
    if impl not in ("sdpa", "plain"):
        raise ValueError(f"attention_impl: {impl!r} is not accepted; expected 'sdpa' or 'plain'")
    for module in model.modules():
        if isinstance(module, Attention):
            module.attention_impl = impl


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Return sinusoidal features [B,channels] fp32 of timesteps [B]: cosines, then sines.

    Source: "Attention Is All You Need" (Vaswani et al. 2017), section 3.5.
    """
    half = channels // 2
    # Rounded to fp32 in this order by the code that the published weights were trained with; at
    # timestep 999 another order turns the angles by 1e-4.
    exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half
    frequencies = exponent.to(timesteps.device).exp()[:, None]
    # Timesteps enter the product as they came: a reshape before it would be a place where a
    # runtime that computes in bf16 rounds 999 to 1000.
    angles = frequencies * timesteps.float()  # [channels/2, B]
    return torch.cat([angles.cos(), angles.sin()]).transpose(0, 1)
