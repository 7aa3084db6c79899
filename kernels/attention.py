"""Attention of the networks' blocks as one kernel, for every head dimension that they have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError
from sdengine.kernels import dtypes, grids, launching, support
from sdengine.kernels.targets import target_of
from sdengine.kernels.variants import Specialisation, Variant

if TYPE_CHECKING:
    from torch import Tensor

OP = "attention"
# A head dimension as a power of two and a tail: the U-Nets', the text encoders' and the VAE's.
HEAD_DIMS = {40: (32, 8), 64: (64, 0), 80: (64, 16), 128: (128, 0), 160: (128, 32), 512: (512, 0)}
# The causal mask takes registers too: they do not suffice for 128 queries at once on 10.0 and 12.0.
_MAX_CAUSAL_BLOCK_M = 64
_MAX_PARTS = 2
# Fewest terms that a tensor core sums.
_MIN_TERMS = 16
_STRIDES = tuple(
    f"{name}_{axis}" for name in ("q", "k", "v", "out") for axis in ("batch", "head", "row")
)


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention: every query of an image and head sees that head's keys."""

    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    causal: bool = False


def _variant(m: int, n: int, warps: int, stages: int, shared_bytes: int, parts: int = 1) -> Variant:
    name = f"m{m}n{n}{'' if parts == 1 else f'v{parts}'}w{warps}s{stages}"
    constants = {"BLOCK_M": m, "BLOCK_N": n}
    if parts > 1:
        constants["PARTS"] = parts
    return Variant(name, constants, warps, stages, shared_bytes)


# None of them spills a register on any target, and each head dimension has one that needs less than
# PORTABLE_SHARED_BYTES; benchmarks/kernel_resources.py checks both.
# Those with two stages load keys while they multiply; the first choice for the U-Nets' head
# dimensions is one of them.
VARIANTS: dict[int, tuple[Variant, ...]] = {
    40: (
        _variant(128, 64, 4, 2, 34816),
        _variant(64, 64, 4, 2, 28672),
        _variant(128, 32, 4, 2, 23552),
        _variant(64, 32, 4, 2, 17408),
    ),
    64: (
        _variant(128, 64, 8, 2, 49696),
        _variant(64, 64, 4, 2, 41984),
        _variant(128, 32, 4, 2, 32800),
    ),
    80: (
        _variant(64, 64, 4, 2, 51200),
        _variant(128, 32, 8, 2, 40960),
        _variant(64, 32, 4, 2, 30720),
    ),
    128: (
        _variant(64, 64, 8, 2, 82976),
        _variant(128, 32, 8, 2, 66080),
        _variant(64, 32, 4, 1, 28672),
    ),
    160: (
        _variant(64, 32, 8, 2, 61440),
        _variant(128, 16, 8, 2, 61440),
        _variant(64, 32, 4, 1, 29184),
        _variant(64, 16, 4, 2, 40960),
    ),
    512: (
        _variant(32, 32, 8, 1, 67584),
        _variant(64, 16, 8, 1, 81928, parts=_MAX_PARTS),
        _variant(32, 16, 8, 1, 50176),
        _variant(16, 16, 4, 1, 33280),
    ),
}


def supports(shape: AttentionShape, dtype: str, cc: int | None) -> tuple[bool, str]:
    """Return whether the kernel computes a shape on a target, and why not.

    Args:
        shape: sizes.
        dtype: of q, k, v and the output.
        cc: compute capability times ten, or None for Triton's interpreter.
    """
    known, reason = support.of_dtype(dtype, cc)
    if not known:
        return known, reason
    if cc is None and dtype == "bfloat16":
        return False, "Triton's interpreter multiplies bfloat16 as integers; use float16 or float32"
    if cc is not None and dtype == "float32":
        return False, "float32 has no tensor core products on a GPU; use float16 or bfloat16"
    if cc is not None and cc < 80:
        return False, (
            f"for compute capability {cc / 10} Triton multiplies without tensor cores; "
            "8.0 and newer have them"
        )
    if shape.head_dim not in HEAD_DIMS:
        return False, f"head dimension {shape.head_dim} is none of {', '.join(map(str, HEAD_DIMS))}"
    if shape.keys < 1:
        return False, "there are no keys, so the softmax has no value"
    if max(shape.heads * _MAX_PARTS, shape.batch) > grids.MAX_YZ:
        return False, f"{shape.heads} heads of {shape.batch} images; at most {grids.MAX_YZ} of each"
    if cc is not None and not variants(shape, dtype, cc):
        return False, f"no variant fits the shared memory of compute capability {cc / 10}"
    return True, ""


def variants(shape: AttentionShape, dtype: str, cc: int | None) -> tuple[Variant, ...]:
    """Return the variants that fit a target, the presumably fastest first.

    The order is that of the products computed, masked and repeated ones too, then of the size of
    the blocks: larger ones read the keys less often.
    """

    def rank(variant: Variant) -> tuple[int, int]:
        m, n = variant.constants["BLOCK_M"], variant.constants["BLOCK_N"]
        scores = grids.cdiv(shape.queries, m) * m * grids.cdiv(shape.keys, n) * n
        return scores * (1 + value_parts(variant)), -m * n

    limit = None if cc is None else target_of(cc).shared_bytes_per_block
    fitting = [
        v
        for v in VARIANTS[shape.head_dim]
        if (limit is None or v.shared_bytes <= limit)
        and not (shape.causal and v.constants["BLOCK_M"] > _MAX_CAUSAL_BLOCK_M)
    ]
    return tuple(sorted(fitting, key=rank))


def value_parts(variant: Variant) -> int:
    """Return how many programs share out the values' columns of a head."""
    return variant.constants.get("PARTS", 1)


def specialise(
    shape: AttentionShape,
    dtype: str,
    variant: Variant,
    scale: float | None = None,
    unit: int | None = None,
) -> Specialisation:
    """Return what to compile.

    Args:
        shape: sizes; only head_dim and causal are compiled in.
        dtype: of q, k, v and the output.
        variant: one of `variants`.
        scale: factor on the scores, or None for 1 / sqrt(head_dim).
        unit: elements that every stride is counted in, or None for 16 bytes' worth.

    Raises:
        ConfigError: the scale is not positive and finite.
    """
    scale = 1 / math.sqrt(shape.head_dim) if scale is None else scale
    if not 0 < scale < math.inf:
        raise ConfigError.for_field("scale", scale, "a positive number or None")
    main, tail = HEAD_DIMS[shape.head_dim]
    pointer = dtypes.POINTER_TYPES[dtype]
    integers = ("num_queries", "num_keys", *_STRIDES)
    return Specialisation(
        OP,
        "attention.attention_kernel",
        (
            *((name, pointer) for name in ("q", "k", "v")),
            *((name, "i32") for name in integers),
            ("out", pointer),
        ),
        {
            "SCALE_LOG2E": scale * math.log2(math.e),
            "CAUSAL": shape.causal,
            "MAIN": main,
            "TAIL": tail,
            "TAIL_DOT": max(tail, _MIN_TERMS) if tail else 0,
            "UNIT": unit or 16 // dtypes.ELEMENT_BYTES[dtype],
            "PARTS": value_parts(variant),
            **variant.constants,
        },
        variant,
        frozenset({"q", "k", "v", "out"}),
    )


def cost(shape: AttentionShape, dtype: str) -> tuple[int, int]:
    """Return the bytes that must move and the operations: a multiplication or addition each.

    Keys and values count once: that they are read again is left to the L2 cache.
    """
    rows = shape.batch * shape.heads
    moved = 2 * rows * (shape.queries + shape.keys) * shape.head_dim * dtypes.ELEMENT_BYTES[dtype]
    seen = shape.queries * shape.keys
    if shape.causal:
        seen = sum(min(query + 1, shape.keys) for query in range(shape.queries))
    return moved, 4 * rows * seen * shape.head_dim


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    causal: bool = False,
    *,
    variant: Variant | None = None,
) -> Tensor:
    """Let every query take a weighted mean of the values.

    Args:
        q: [B,heads,S,D] fp16, bf16 or, interpreted, fp32; any strides but the last, which is 1.
            A fused projection [B,S,3,heads,D] gives q, k, v by `permute(2, 0, 3, 1, 4)`, uncopied.
        k, v: [B,heads,T,D].
        scale: factor on the scores, or None for 1 / sqrt(D).
        causal: query i sees keys 0 to i only.
        variant: how to cut the work, or None for the first of `variants`.

    Returns:
        [B,heads,S,D] of q's type; in memory [B,S,heads,D], as the output projection reads it.

    Raises:
        ConfigError: shapes, types, strides or the device are not supported; the message says why.
        BackendUnavailableError: triton is not installed.
    """
    import torch

    shape = _shape_of(q, k, v, causal)
    dtype = dtypes.dtype_name(q)
    cc = launching.compute_capability({"q": q, "k": k, "v": v})
    support.require(supports(shape, dtype, cc), OP)
    B, S, heads, D = shape.batch, shape.queries, shape.heads, shape.head_dim
    out = torch.empty((B, S, heads, D), dtype=q.dtype, device=q.device).transpose(1, 2)
    tensors = {"q": q, "k": k, "v": v, "out": out}
    unit = _unit(tensors)
    chosen = variant or variants(shape, dtype, cc)[0]
    strides = {
        f"{name}_{axis}": tensor.stride(i) // unit
        for name, tensor in tensors.items()
        for i, axis in enumerate(("batch", "head", "row"))
    }
    grid = (grids.cdiv(S, chosen.constants["BLOCK_M"]), heads * value_parts(chosen), B)
    launching.launch(
        specialise(shape, dtype, chosen, scale, unit),
        grid,
        {**tensors, "num_queries": S, "num_keys": shape.keys, **strides},
    )
    return out


def _shape_of(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> AttentionShape:
    fits = (
        q.ndim == k.ndim == v.ndim == 4
        and k.shape == v.shape
        and q.shape[:2] == k.shape[:2]
        and q.shape[3] == k.shape[3]
        and q.dtype == k.dtype == v.dtype
    )
    if not fits:
        found = [(list(tensor.shape), dtypes.dtype_name(tensor)) for tensor in (q, k, v)]
        accepted = "[B,heads,S,D], [B,heads,T,D], [B,heads,T,D] of one type"
        raise ConfigError.for_field("q, k, v", found, accepted)
    batch, heads, queries, head_dim = q.shape
    return AttentionShape(batch, heads, queries, k.shape[2], head_dim, causal)


def _unit(tensors: dict[str, Tensor]) -> int:
    """Return the largest unit of up to 16 bytes that all strides are multiples of."""
    unit = 16 // int(dtypes.ELEMENT_BYTES[dtypes.dtype_name(tensors["q"])])
    for name, tensor in tensors.items():
        *strides, last = tensor.stride()
        if last != 1 and tensor.shape[3] > 1:
            hint = "Make the head dimension the last one in memory."
            raise ConfigError.for_field(
                f"{name}.stride()", tensor.stride(), "a last one of 1", hint
            )
        if tensor.shape[2] * strides[2] > grids.MAX_INT32 or max(strides) > grids.MAX_INT32:
            raise ConfigError.for_field(
                f"{name}.stride()", tensor.stride(), f"up to {grids.MAX_INT32} elements a head"
            )
        unit = math.gcd(unit, *strides)
    return unit
