"""Plugins of full TensorRT: the Triton kernels, compiled ahead of time, several tactics each.

TensorRT calls these functions while it builds: one says what comes out, one which tactics there
are, one gives the machine code of a tactic and how to launch it. The engine then needs no Python.

Source: "TensorRT Python API: Quickly Deployable Plugins", NVIDIA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sdengine.errors import EngineBuildError
from sdengine.export.fused_functions import DOMAIN
from sdengine.kernels import attention, group_norm
from sdengine.kernels.attention import AttentionShape
from sdengine.kernels.compiling import compile_kernel
from sdengine.kernels.group_norm import GroupNormShape
from sdengine.kernels.targets import PORTABLE_SHARED_BYTES
from sdengine.kernels.variants import Specialisation, Variant

# Kernels of 16 bits; TensorRT's name of each type.
_DTYPES = {"HALF": "float16", "BF16": "bfloat16"}
_IO_TYPES = "FP16|BF16"


@dataclass(frozen=True)
class PluginTarget:
    """Say what plugins are compiled for.

    Args:
        cc: compute capability of the GPU that engines are built for, times ten.
        ptx_version: newest PTX, times ten, that may be written: an engine holds PTX, which the
            driver of the machine that runs it must read.
    """

    cc: int
    ptx_version: int


def register_plugins(trtp: Any, target: PluginTarget) -> None:
    """Register every plugin of the module `tensorrt.plugin` for a target."""
    _register_attention(trtp, target, causal=False)
    _register_attention(trtp, target, causal=True)
    _register_group_norm(trtp, target, silu=False)
    _register_group_norm(trtp, target, silu=True)


def attention_variants(head_dim: int, causal: bool, dtype: str, cc: int) -> tuple[Variant, ...]:
    """Return the tactics for a head dimension; a tactic is a number from 1 on.

    All need less shared memory than a launch may take unasked, because a plugin cannot ask.
    """
    shape = AttentionShape(1, 1, 4096, 4096, head_dim, causal)
    if not attention.supports(shape, dtype, cc)[0]:
        return ()
    return _portable(attention.variants(shape, dtype, cc))


def group_norm_variants(channels: int, num_groups: int, dtype: str, cc: int) -> tuple[Variant, ...]:
    """Return the tactics for a number of channels: those of one kernel and any number of positions.

    A plugin is one kernel without memory of its own, so a large map cannot be shared out.
    """
    shape = GroupNormShape(1, channels, (1 << 30) // channels, num_groups)
    if not group_norm.supports(shape, dtype, cc)[0]:
        return ()
    found = [v for v in group_norm.variants(shape, dtype, cc) if not group_norm.is_split(v)]
    return _portable(found)


def _portable(variants: Sequence[Variant]) -> tuple[Variant, ...]:
    return tuple(v for v in variants if v.shared_bytes < PORTABLE_SHARED_BYTES)


def _register_attention(trtp: Any, target: PluginTarget, *, causal: bool) -> None:
    name = "causal_attention" if causal else "attention"
    tensors = ("q", "k", "v")

    def describe(q: Any, k: Any, v: Any, scale: float) -> Any:
        return q.like()

    def tactics(q: Any, k: Any, v: Any, scale: float, outputs: Any) -> Any:
        found = attention_variants(_number(q, 3), causal, "float16", target.cc)
        return [_combination(trtp, len(tensors), found)]

    def implement(q: Any, k: Any, v: Any, scale: float, outputs: Any, tactic: int) -> Any:
        heads, head_dim, dtype = _number(q, 2), _number(q, 3), _dtype(q)
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
        grid = (trtp.cdiv(rows, variant.constants["BLOCK_M"]), heads, q.shape_expr[0])
        return _launch(trtp, specialisation, target, grid, values)

    _register(trtp, name, tensors, {"scale": float}, describe, tactics, implement)


def _register_group_norm(trtp: Any, target: PluginTarget, *, silu: bool) -> None:
    name = "group_norm_silu" if silu else "group_norm"
    tensors = ("x", "weight", "bias")

    def describe(x: Any, weight: Any, bias: Any, num_groups: int, epsilon: float) -> Any:
        return x.like()

    def tactics(
        x: Any, weight: Any, bias: Any, num_groups: int, epsilon: float, outputs: Any
    ) -> Any:
        found = group_norm_variants(_number(x, 1), num_groups, "float16", target.cc)
        return [_combination(trtp, len(tensors), found)]

    def implement(
        x: Any,
        weight: Any,
        bias: Any,
        num_groups: int,
        epsilon: float,
        outputs: Any,
        tactic: int,
    ) -> Any:
        channels, dtype = _number(x, 1), _dtype(x)
        variant = group_norm_variants(channels, num_groups, dtype, target.cc)[tactic - 1]
        # Positions stay open, so nothing is known of their alignment.
        shape = GroupNormShape(1, channels, 1, num_groups)
        specialisation = group_norm.specialise(shape, dtype, variant, epsilon, silu)
        positions = x.shape_expr[2]
        for axis in range(3, len(x.shape_expr)):
            positions = positions * x.shape_expr[axis]
        grid = (num_groups, x.shape_expr[0], 1)
        return _launch(trtp, specialisation, target, grid, {"num_positions": positions})

    attributes = {"num_groups": int, "epsilon": float}
    _register(trtp, name, tensors, attributes, describe, tactics, implement)


def _register(
    trtp: Any,
    name: str,
    tensors: tuple[str, ...],
    attributes: dict[str, type],
    describe: Callable[..., Any],
    tactics: Callable[..., Any],
    implement: Callable[..., Any],
) -> None:
    """Give the functions the annotations that TensorRT reads, as types, and register them."""
    inputs: dict[str, Any] = {**dict.fromkeys(tensors, trtp.TensorDesc), **attributes}
    outputs = tuple[trtp.TensorDesc]
    describe.__annotations__ = {**inputs, "return": trtp.TensorDesc}
    tactics.__annotations__ = {
        **inputs,
        "outputs": outputs,
        "return": list[trtp.AutoTuneCombination],
    }
    implement.__annotations__ = {
        **inputs,
        "outputs": outputs,
        "tactic": int,
        "return": tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs],
    }
    identity = f"{DOMAIN}::{name}"
    trtp.register(identity)(describe)
    trtp.autotune(identity)(tactics)
    trtp.aot_impl(identity)(implement)


def _combination(trtp: Any, num_inputs: int, variants: tuple[Variant, ...]) -> Any:
    """Offer the variants as tactics for fp16 and bf16, every tensor of the same type."""
    types = ", ".join([_IO_TYPES] * (num_inputs + 1))
    return trtp.AutoTuneCombination(types, "LINEAR", list(range(1, len(variants) + 1)))


def _launch(
    trtp: Any,
    specialisation: Specialisation,
    target: PluginTarget,
    grid: tuple[Any, Any, Any],
    values: dict[str, Any],
) -> tuple[str, str, Any, Any]:
    """Compile a kernel and say how it is launched; its integers are passed in its own order."""
    compiled = compile_kernel(specialisation, target.cc, target.ptx_version)
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = grid
    params.block_x = compiled.threads
    params.shared_mem = compiled.shared_bytes
    integers = [name for name, kind in specialisation.arguments if not kind.startswith("*")]
    extra = trtp.SymIntExprs(len(integers))
    for index, name in enumerate(integers):
        extra[index] = trtp.SymInt32(values[name])
    return compiled.name, compiled.ptx, params, extra


def _number(tensor: Any, axis: int) -> int:
    """Return a size that must be known when building."""
    # Not `shape_expr`, which is a stand-in while tactics are asked for.
    size = int(tensor.shape[axis])
    if size < 1:
        raise EngineBuildError(f"a plugin's input has an open size on axis {axis}.")
    return size


def _dtype(tensor: Any) -> str:
    name = tensor.dtype.name
    if name not in _DTYPES:
        raise EngineBuildError(f"a plugin is asked for {name}; it computes {', '.join(_DTYPES)}.")
    return _DTYPES[name]
