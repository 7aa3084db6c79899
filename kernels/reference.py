"""Reference of each kernel in plain torch and fp32: what the fast versions are tested against."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None = None, causal: bool = False
) -> Tensor:
    """Let every query take a weighted mean of the values.

    Args:
        q: [B,heads,S,D], any floating type.
        k: [B,heads,T,D].
        v: [B,heads,T,E].
        scale: factor on the scores, or None for 1 / sqrt(D).
        causal: query i sees keys 0 to i only.

    Returns:
        softmax(scale * q k^T) v as [B,heads,S,E] fp32, whatever the arguments' type.

    Raises:
        ValueError: the shapes do not fit.

    Source: "Attention Is All You Need" (Vaswani et al. 2017), equation 1.
    """
    import torch

    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and q.shape[:2] == k.shape[:2] == v.shape[:2]
        and q.shape[3] == k.shape[3]
        and k.shape[2] == v.shape[2] > 0
    )
    if not fits:
        raise ValueError(
            f"q, k, v: have shapes {list(q.shape)}, {list(k.shape)}, {list(v.shape)}; expected "
            "[B,heads,S,D], [B,heads,T,D], [B,heads,T,E] with T of 1 and more"
        )
    if scale is None:
        scale = 1 / math.sqrt(q.shape[3])
    scores = scale * (q.float() @ k.float().transpose(2, 3))  # [B,heads,S,T]
    if causal:
        hidden = torch.ones(scores.shape[2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    weights = torch.exp(scores - scores.amax(dim=3, keepdim=True))
    return weights @ v.float() / weights.sum(dim=3, keepdim=True)


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool = True,
    residual: Tensor | None = None,
    time_embedding: Tensor | None = None,
) -> Tensor:
    """Add, normalise groups of channels, scale and shift each channel, and apply SiLU.

    Args:
        x: [B,C,...], any floating type; C is a multiple of num_groups.
        weight, bias: [C].
        num_groups: each spans C / num_groups neighbouring channels and every position.
        eps: added to the variance.
        silu: whether y * sigmoid(y) follows.
        residual: [B,C,...] added to x before, or None.
        time_embedding: [B,C] added to every position before, or None.

    Returns:
        [B,C,...] fp32, whatever the arguments' type.

    Raises:
        ValueError: the shapes do not fit.

    Source: "Group Normalization" (Wu and He 2018), equations 1 to 3; "Gaussian Error Linear Units"
    (Hendrycks and Gimpel 2016) for SiLU.
    """
    channels = x.shape[1] if x.ndim >= 2 else 0
    if num_groups < 1 or channels == 0 or channels % num_groups != 0:
        raise ValueError(
            f"x, num_groups: {list(x.shape)} does not split into {num_groups} groups; expected "
            "[B,C,...] with C a multiple of num_groups"
        )
    if weight.shape != (channels,) or bias.shape != (channels,):
        raise ValueError(
            f"weight, bias: have shapes {list(weight.shape)}, {list(bias.shape)}; expected "
            f"[{channels}]"
        )
    ones = [1] * (x.ndim - 2)
    total = x.float()
    if residual is not None:
        total = total + residual.float()
    if time_embedding is not None:
        total = total + time_embedding.float().reshape(*x.shape[:2], *ones)
    groups = total.reshape(x.shape[0], num_groups, -1)
    centred = groups - groups.mean(dim=2, keepdim=True)
    variance = centred.square().mean(dim=2, keepdim=True)
    normed = (centred / (variance + eps).sqrt()).reshape(x.shape)
    y = normed * weight.float().reshape(1, channels, *ones)
    y = y + bias.float().reshape(1, channels, *ones)
    return y / (1 + (-y).exp()) if silu else y


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, residual: Tensor | None = None
) -> Tensor:
    """Normalise rows, after adding the residual where there is one.

    Args:
        x: [...,N], any floating type.
        weight, bias: [N].
        eps: added to the variance.
        residual: as x, or None.

    Returns:
        [...,N] fp32.

    Source: "Layer Normalization" (Ba, Kiros and Hinton 2016), equations 3 and 4.
    """
    total = x.float() if residual is None else x.float() + residual.float()
    centred = total - total.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + eps).sqrt() * weight.float() + bias.float()


def geglu(x: Tensor) -> Tensor:
    """Multiply the first half of each row by GELU of the second half.

    Args:
        x: [...,2N], any floating type.

    Returns:
        [...,N] fp32.

    Source: "GLU Variants Improve Transformer" (Shazeer 2020), equation 5, with the exact GELU.
    """
    import torch

    value, gate = x.float().chunk(2, dim=-1)
    return value * gate * 0.5 * (1 + torch.erf(gate / math.sqrt(2)))
