"""Both sides of each kernel's comparison, and the truth, on equal tensors of a shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sdengine.kernels import attention, geglu, group_norm, layer_norm, reference
from sdengine.kernels.variants import Variant

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-5
Compute = Callable[[], "Tensor"]
Tensors = dict[str, "Tensor"]


def tensors_of(op: str, shape: Any, dtype: str, device: str) -> Tensors:
    """Make seeded arguments of an operation, in the memory layout that its shape says."""
    import torch

    generator = torch.Generator(device).manual_seed(0)

    def made(*sizes: int) -> Tensor:
        values = torch.randn(sizes, generator=generator, device=device)
        return values.to(getattr(torch, dtype))

    if op == attention.OP:
        # As linear layers leave them: heads beside each other in a row.
        rows = {"q": shape.queries, "k": shape.keys, "v": shape.keys}
        return {
            name: made(shape.batch, length, shape.heads, shape.head_dim).transpose(1, 2)
            for name, length in rows.items()
        }
    if op == geglu.OP:
        return {"x": made(shape.rows, 2 * shape.width)}
    if op == layer_norm.OP:
        tensors = {"x": made(shape.rows, shape.width)}
        if shape.residual:
            tensors["residual"] = made(shape.rows, shape.width)
        return tensors | {"weight": made(shape.width), "bias": made(shape.width)}
    tensors = {"x": _map(shape, made)}
    if shape.residual:
        tensors["residual"] = _map(shape, made)
    if shape.time_embedding:
        tensors["time_embedding"] = made(shape.batch, shape.channels)
    return tensors | {"weight": made(shape.channels), "bias": made(shape.channels)}


def _map(shape: group_norm.GroupNormShape, made: Callable[..., Tensor]) -> Tensor:
    """Make a map of one row of positions: what a kernel moves does not depend on their width."""
    if shape.channels_last:
        return made(shape.batch, 1, shape.positions, shape.channels).permute(0, 3, 1, 2)
    return made(shape.batch, shape.channels, 1, shape.positions)


def kernel(op: str, shape: Any, tensors: Tensors, variant: Variant) -> Compute:
    """Return a variant of our kernel as a function without arguments."""
    t = tensors
    if op == attention.OP:
        return lambda: attention.attention(
            t["q"], t["k"], t["v"], causal=shape.causal, variant=variant
        )
    if op == geglu.OP:
        return lambda: geglu.geglu(t["x"], variant=variant)
    if op == layer_norm.OP:
        if shape.residual:
            return lambda: layer_norm.add_layer_norm(
                t["x"], t["residual"], t["weight"], t["bias"], EPS, variant=variant
            )[0]
        return lambda: layer_norm.layer_norm(t["x"], t["weight"], t["bias"], EPS, variant=variant)
    options: dict[str, Any] = {"variant": variant, "time_embedding": t.get("time_embedding")}
    if shape.total:
        return lambda: group_norm.add_group_norm_silu(
            t["x"], t["residual"], t["weight"], t["bias"], shape.num_groups, EPS, **options
        )[0]
    return lambda: group_norm.group_norm_silu(
        t["x"], t["weight"], t["bias"], shape.num_groups, EPS,
        residual=t.get("residual"), **options,
    )  # fmt: skip


def torchs(op: str, shape: Any, tensors: Tensors) -> Compute:
    """Return what eager torch computes the same with, as a function without arguments."""
    import torch.nn.functional as F

    t = tensors
    if op == attention.OP:
        return lambda: F.scaled_dot_product_attention(
            t["q"], t["k"], t["v"], is_causal=shape.causal
        )
    if op == geglu.OP:

        def gate() -> Tensor:
            value, gates = t["x"].chunk(2, dim=-1)
            return value * F.gelu(gates)

        return gate
    if op == layer_norm.OP:
        return lambda: F.layer_norm(_sum(t), (shape.width,), t["weight"], t["bias"], EPS)
    return lambda: F.silu(F.group_norm(_sum(t), shape.num_groups, t["weight"], t["bias"], EPS))


def truth(op: str, shape: Any, tensors: Tensors) -> Tensor:
    """Return what the reference computes, in fp32."""
    t = tensors
    if op == attention.OP:
        return _attention_in_parts(shape, t)
    if op == geglu.OP:
        return reference.geglu(t["x"])
    if op == layer_norm.OP:
        return reference.layer_norm(t["x"], t["weight"], t["bias"], EPS, t.get("residual"))
    return reference.group_norm_silu(
        t["x"], t["weight"], t["bias"], shape.num_groups, EPS,
        residual=t.get("residual"), time_embedding=t.get("time_embedding"),
    )  # fmt: skip


def _attention_in_parts(shape: Any, t: Tensors) -> Tensor:
    """Let few queries attend at a time, because the reference holds their scores in memory."""
    import torch

    if shape.causal or shape.queries * shape.keys <= 1 << 22:
        return reference.attention(t["q"], t["k"], t["v"], None, shape.causal)
    parts = torch.split(t["q"], (1 << 22) // shape.keys, dim=2)
    return torch.cat([reference.attention(q, t["k"], t["v"]) for q in parts], dim=2)


def _sum(t: Tensors) -> Tensor:
    total = t["x"]
    if "residual" in t:
        total = total + t["residual"]
    if "time_embedding" in t:
        total = total + t["time_embedding"][:, :, None, None]
    return total
