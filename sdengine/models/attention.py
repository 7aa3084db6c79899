"""Attention and the transformer that the U-Net and the ControlNet run over feature maps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdengine.models.ops import PLAIN_ATTENTION_OPS, TORCH_OPS, OpsModule, set_ops

GROUP_NORM_EPS = 1e-6


class Attention(OpsModule):
    """Multi-head attention of tokens over a context, or over themselves."""

    def __init__(self, channels: int, context_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Kept as numbers: taken from a traced tensor's shape they would become graph nodes.
        self.head_dim = channels // num_heads
        self.scale = self.head_dim**-0.5
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
        out = self.ops.attention(q, k, v, self.scale)
        result: Tensor = self.to_out[0](out.transpose(1, 2).flatten(2))
        return result


class GEGLU(OpsModule):
    """Gate one half of a projection by the GELU of the other.

    Source: "GLU Variants Improve Transformer" (Shazeer 2020), equation 6.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.proj = nn.Linear(channels, 2 * inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,S,inner]."""
        return self.ops.geglu(self.proj(x), self.inner)


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


class BasicTransformerBlock(OpsModule):
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
        normed = self.ops.layer_norm(self.norm1, x)
        normed, x = self.ops.add_layer_norm(self.norm2, self.attn1(normed, normed), x)
        normed, x = self.ops.add_layer_norm(self.norm3, self.attn2(normed, context), x)
        out: Tensor = x + self.ff(normed)
        return out


class Transformer2DModel(OpsModule):
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
        h = self.ops.group_norm(self.norm, x)
        if not self.linear_projection:
            h = self.proj_in(h)
        tokens = h.flatten(2).transpose(1, 2)  # [B, h*w, C]
        if self.linear_projection:
            tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        if self.linear_projection:
            tokens = self.proj_out(tokens)
        h = torch.unflatten(tokens.transpose(1, 2), 2, (height, width))
        if not self.linear_projection:
            h = self.proj_out(h)
        out: Tensor = x + h
        return out


def set_attention_impl(model: nn.Module, impl: str) -> None:
    """Choose "sdpa", torch's fused function, or "plain" products for a model's attention."""
    tables = {"sdpa": TORCH_OPS, "plain": PLAIN_ATTENTION_OPS}
    if impl not in tables:
        raise ValueError(f"attention_impl: {impl!r} is not accepted; expected 'sdpa' or 'plain'")
    set_ops(model, tables[impl])
