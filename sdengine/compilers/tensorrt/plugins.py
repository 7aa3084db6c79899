"""Plugins of full TensorRT: the Triton kernels, compiled ahead of time, several tactics each.

TensorRT calls these functions while it builds: one says what comes out, one which tactics there
are, one gives the machine code of a tactic and how to launch it. The engine then needs no Python.
"""

from __future__ import annotations

from typing import Any

from sdengine.compilers.tensorrt.group_norm_plugins import register_group_norm
from sdengine.compilers.tensorrt.plugin_parts import (
    MAP_TYPES,
    PluginTarget,
    combination,
    dtype_of,
    launch,
    number,
    portable,
    register,
)
from sdengine.kernels import attention
from sdengine.kernels.attention import AttentionShape
from sdengine.kernels.variants import Variant


def register_plugins(trtp: Any, target: PluginTarget) -> None:
    """Register every plugin of the module `tensorrt.plugin` for a target."""
    _register_attention(trtp, target, causal=False)
    _register_attention(trtp, target, causal=True)
    register_group_norm(trtp, target)


def attention_variants(head_dim: int, causal: bool, dtype: str, cc: int) -> tuple[Variant, ...]:
    """Return the tactics for a head dimension; a tactic is a number from 1 on.

    All need less shared memory than a launch may take unasked, because a plugin cannot ask.
    """
    shape = AttentionShape(1, 1, 4096, 4096, head_dim, causal)
    if not attention.supports(shape, dtype, cc)[0]:
        return ()
    return portable(attention.variants(shape, dtype, cc))


def _register_attention(trtp: Any, target: PluginTarget, *, causal: bool) -> None:
    name = "causal_attention" if causal else "attention"
    tensors = ("q", "k", "v")

    def describe(q: Any, k: Any, v: Any, scale: float) -> Any:
        return q.like()

    def tactics(q: Any, k: Any, v: Any, scale: float, outputs: Any) -> Any:
        found = attention_variants(number(q, 3), causal, "float16", target.cc)
        return [combination(trtp, [MAP_TYPES] * 4, ["LINEAR"] * 4, found)]

    def implement(q: Any, k: Any, v: Any, scale: float, outputs: Any, tactic: int) -> Any:
        heads, head_dim, dtype = number(q, 2), number(q, 3), dtype_of(q)
        variant = attention_variants(head_dim, causal, dtype, target.cc)[tactic - 1]
        shape = AttentionShape(1, heads, 1, 1, head_dim, causal)
        specialisation = attention.specialise(shape, dtype, variant, scale)
        unit = int(specialisation.constants["UNIT"])
        rows, keys = q.shape_expr[1], k.shape_expr[1]
        step = heads * head_dim // unit  # between two rows of all heads
        values: dict[str, Any] = {"num_queries": rows, "num_keys": keys}
        for tensor, length in (("q", rows), ("k", keys), ("v", keys), ("out", rows)):
            values[f"{tensor}_batch"] = length * step
            values[f"{tensor}_head"] = head_dim // unit
            values[f"{tensor}_row"] = step
        programs = heads * attention.value_parts(variant)
        grid = (trtp.cdiv(rows, variant.constants["BLOCK_M"]), programs, q.shape_expr[0])
        return launch(trtp, specialisation, target, grid, values)

    register(trtp, name, tensors, {"scale": float}, describe, tactics, implement)
