"""Timesteps as the networks read them: sinusoidal features and the layers behind them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Return sinusoidal features [B,channels] fp32 of timesteps [B]: cosines, then sines.

    Source: "Attention Is All You Need" (Vaswani et al. 2017), section 3.5.
    """
    half = channels // 2
    # Rounded to fp32 in this order by the code that the published weights were trained with; at
    # timestep 999 another order turns the angles by 1e-4.
    # Made where it is used, because a graph of a GPU's work cannot hold a copy from the host.
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    frequencies = (-math.log(10000.0) * steps / half).exp()[:, None]
    # Timesteps enter the product as they came: a reshape before it would be a place where a
    # runtime that computes in bf16 rounds 999 to 1000.
    angles = frequencies * timesteps.float()  # [channels/2, B]
    return torch.cat([angles.cos(), angles.sin()]).transpose(0, 1)


class TimestepEmbedding(nn.Module):
    """Turn sinusoidal features into the embedding that residual blocks read."""

    def __init__(self, in_channels: int, channels: int, cond_channels: int | None = None) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, channels)
        if cond_channels is not None:
            self.cond_proj = nn.Linear(cond_channels, in_channels, bias=False)
        self.linear_2 = nn.Linear(channels, channels)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return [B,channels]."""
        if condition is not None:
            x = x + self.cond_proj(condition)
        out: Tensor = self.linear_2(F.silu(self.linear_1(x)))
        return out
