"""Cases of the Triton kernels: small shapes that reach every branch, with fp64 results."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdengine.kernels import attention, geglu, group_norm, layer_norm, reference
from sdengine.kernels.variants import Variant

EPS = 1e-5


@dataclass(frozen=True)
class Case:
    """Hold a call of a launcher and what it should return.

    Args:
        name: unique.
        op, dtype: row of the tolerances.
        inputs: tensors that the call reads.
        call: of the launcher.
        truths: the same in fp64, by torch's own operations.
        references: the same by the kernels' references.
    """

    name: str
    op: str
    dtype: str
    inputs: tuple[Tensor, ...]
    call: Callable[[], tuple[Tensor, ...]]
    truths: Callable[[], tuple[Tensor, ...]]
    references: Callable[[], tuple[Tensor, ...]]


def _drawn(name: str, dtype: str, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    return tuple(
        torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for shape in shapes
    )


def attention_case(
    dtype: str,
    shape: attention.AttentionShape,
    variant: Variant,
    fused: bool = False,
    gap: int = 0,
) -> Case:
    """Return a case of attention.

    Args:
        dtype: of all tensors.
        shape: sizes.
        variant: how to cut the work.
        fused: q, k and v are views of one projection.
        gap: numbers between the rows that belong to nothing. By 2 of them, rows lie on 4 bytes
            only, so that loads are narrow.
    """
    name = (
        f"attention {dtype} {shape} {variant.name}" + " fused" * fused + f" gap {gap}" * bool(gap)
    )
    B, H, S, T, D = shape.batch, shape.heads, shape.queries, shape.keys, shape.head_dim
    if fused:
        (projection,) = _drawn(name, dtype, (B, S, 3, H, D))
        q, k, v = projection.permute(2, 0, 3, 1, 4).unbind(0)
    else:
        drawn = _drawn(name, dtype, (B, S, H, D + gap), *[(B, T, H, D + gap)] * 2)
        q, k, v = (x.transpose(1, 2)[..., :D] for x in drawn)
    # Scores far below 0, that of a key which is not there: without a mask it outweighs the others.
    q.mul_(0.5).add_(1)
    k.mul_(0.5).sub_(1)
    q64, k64, v64 = q.double(), k.double(), v.double()
    return Case(
        name,
        attention.OP,
        dtype,
        (q, k, v),
        lambda: (attention.attention(q, k, v, causal=shape.causal, variant=variant),),
        lambda: (F.scaled_dot_product_attention(q64, k64, v64, is_causal=shape.causal),),
        lambda: (reference.attention(q, k, v, None, shape.causal),),
    )


def group_norm_case(
    dtype: str, shape: group_norm.GroupNormShape, variant: Variant, silu: bool = True
) -> Case:
    """Return a case of group normalisation with the additions that the shape names."""
    name = f"group_norm {dtype} {shape} {variant.name}" + "" * silu
    C, P = shape.channels, shape.positions
    side = next(n for n in range(int(P**0.5), 0, -1) if P % n == 0)
    map_shape = (shape.batch, C, P // side, side)
    x, residual = _drawn(name, dtype, map_shape, map_shape)
    x = x * 2 + 3
    weight, bias, embedding = _drawn(name, dtype, (C,), (C,), (shape.batch, C))
    if shape.channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
        residual = residual.contiguous(memory_format=torch.channels_last)
    added: dict[str, Any] = {"variant": variant}
    added["time_embedding"] = embedding if shape.time_embedding else None
    common = (weight, bias, shape.num_groups, EPS, silu)
    total = x.double()
    if shape.residual:
        total = total + residual.double()
    if shape.time_embedding:
        total = total + embedding.double()[:, :, None, None]

    def call() -> tuple[Tensor, ...]:
        if shape.total:
            return group_norm.add_group_norm_silu(x, residual, *common, **added)
        given = residual if shape.residual else None
        return (group_norm.group_norm_silu(x, *common, residual=given, **added),)

    def truths() -> tuple[Tensor, ...]:
        y = F.group_norm(total, shape.num_groups, weight.double(), bias.double(), EPS)
        y = F.silu(y) if silu else y
        return (y, total) if shape.total else (y,)

    def references() -> tuple[Tensor, ...]:
        y = reference.group_norm_silu(total, *common)
        return (y, total) if shape.total else (y,)

    inputs = (x, residual, weight, bias, embedding)
    return Case(name, group_norm.OP, dtype, inputs, call, truths, references)


def layer_norm_case(dtype: str, shape: layer_norm.LayerNormShape, variant: Variant) -> Case:
    """Return a case of layer normalisation, with a residual where the shape names one."""
    name = f"layer_norm {dtype} {shape} {variant.name}"
    N = shape.width
    x, residual, weight, bias = _drawn(name, dtype, (shape.rows, N), (shape.rows, N), (N,), (N,))
    x = x * 2 + 3  # a mean, so that a lane too many shows in the sums
    total = x.double() + residual.double() if shape.residual else x.double()

    def call() -> tuple[Tensor, ...]:
        if shape.residual:
            return layer_norm.add_layer_norm(x, residual, weight, bias, EPS, variant=variant)
        return (layer_norm.layer_norm(x, weight, bias, EPS, variant=variant),)

    def truths() -> tuple[Tensor, ...]:
        y = F.layer_norm(total, (N,), weight.double(), bias.double(), EPS)
        return (y, total) if shape.residual else (y,)

    def references() -> tuple[Tensor, ...]:
        y = reference.layer_norm(total, weight, bias, EPS)
        return (y, total) if shape.residual else (y,)

    return Case(name, layer_norm.OP, dtype, (x, residual, weight, bias), call, truths, references)


def geglu_case(dtype: str, shape: geglu.GegluShape, variant: Variant) -> Case:
    """Return a case of the gated activation."""
    name = f"geglu {dtype} {shape} {variant.name}"
    (x,) = _drawn(name, dtype, (shape.rows, 2 * shape.width))
    value, gate = x.double().chunk(2, dim=-1)
    return Case(
        name,
        geglu.OP,
        dtype,
        (x,),
        lambda: (geglu.geglu(x, variant=variant),),
        lambda: (value * F.gelu(gate),),
        lambda: (reference.geglu(x),),
    )
