"""Sets of cases: a few of every kernel for each run of the tests, and all variants for a sweep."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from support.ptx.triton_cases import (
    Case,
    attention_case,
    geglu_case,
    group_norm_case,
    layer_norm_case,
)

from sdengine.kernels import attention, geglu, group_norm, layer_norm

CAPABILITIES = (80, 86, 89, 120)
HALVES = ("float16", "bfloat16")
DTYPES = (*HALVES, "float32")


def _attention(
    dtype: str, head_dim: int, causal: bool, cc: int, variant: int = 0, **layout: Any
) -> list[Case]:
    """Return cases of one kernel: several blocks of queries and keys, few keys, one of each.

    A causal case has fewer keys than queries, so that both masks hide something.
    """
    shape = attention.AttentionShape(1, 1, 140, 77, head_dim, causal)
    found = attention.variants(shape, dtype, cc)
    if variant >= len(found):
        return []
    m, n = (found[variant].constants[name] for name in ("BLOCK_M", "BLOCK_N"))
    sizes = [(1, 2, m + 6, 2 * n + 7), (2, 1, 9, 5)]
    if causal:
        sizes[0] = (1, 2, 2 * n + m + 6, 2 * n + 7)
    return [
        attention_case(dtype, attention.AttentionShape(*size, head_dim, causal), found[variant],
                       **{"gap": 8, **layout})
        for size in sizes
    ]  # fmt: skip


def _fused(dtype: str, head_dim: int, cc: int) -> Case:
    shape = attention.AttentionShape(1, 2, 71, 71, head_dim)
    return attention_case(dtype, shape, attention.variants(shape, dtype, cc)[0], fused=True)


def _group_norm(dtype: str, cc: int, which: slice, **shape: Any) -> Iterator[Case]:
    """Yield cases of variants of a shape, and of some more images by the same kernel."""
    for batch in (1, 2):
        sizes = group_norm.GroupNormShape(batch, **shape)
        for variant in group_norm.variants(sizes, dtype, cc)[which]:
            yield group_norm_case(dtype, sizes, variant)


_ADDED = {"residual": True, "time_embedding": True, "total": True}
# Groups of numbers of channels that are no power of two; positions that fill no block.
_SMALL = {"channels": 20, "positions": 35, "num_groups": 2}
_MEDIUM = {"channels": 10, "positions": 300, "num_groups": 1}
_LARGE = {"channels": 40, "positions": 900, "num_groups": 2}
_FIRST, _LAST, _ALL = slice(0, 1), slice(-1, None), slice(None)


def chosen(cc: int) -> dict[str, list[Case]]:
    """Return the cases that every run of the tests computes for a compute capability, by kernel."""
    nhwc = {"channels_last": True, **_ADDED}
    return {
        "attention 40 causal": _attention("float16", 40, True, cc),
        "attention 64": _attention("bfloat16", 64, False, cc),
        "attention 80 narrow loads": _attention("float16", 80, False, cc, gap=2),
        "attention 160 causal": _attention("bfloat16", 160, True, cc),
        "attention 512": _attention("float16", 512, False, cc, variant=2),
        "attention 128 fused": [_fused("float16", 128, cc)],
        "group norm small": [*_group_norm("float16", cc, _FIRST, **_SMALL)],
        "group norm medium NHWC": [*_group_norm("bfloat16", cc, _LAST, **_MEDIUM, **nhwc)],
        "group norm medium": [*_group_norm("float32", cc, _LAST, **_MEDIUM, **_ADDED)],
        "group norm large NHWC": [*_group_norm("float16", cc, _FIRST, **_LARGE, **nhwc)],
        "group norm large": [*_group_norm("bfloat16", cc, _FIRST, **_LARGE)],
        "layer norm residual": [*_rows("float16", cc, _FIRST, True)],
        "layer norm": [*_rows("float32", cc, _FIRST, False)],
        "geglu": [*_gates("bfloat16", cc, _FIRST)],
        "geglu float32": [*_gates("float32", cc, _LAST)],
    }


def _rows(dtype: str, cc: int, which: slice, residual: bool) -> Iterator[Case]:
    for rows in (1, 5):
        shape = layer_norm.LayerNormShape(rows, 300, residual)
        for variant in layer_norm.variants(shape, dtype, cc)[which]:
            yield layer_norm_case(dtype, shape, variant)


def _gates(dtype: str, cc: int, which: slice) -> Iterator[Case]:
    for variant in geglu.variants(geglu.GegluShape(5, 1050), dtype, cc)[which]:
        for rows in (1, 5):
            yield geglu_case(dtype, geglu.GegluShape(rows, 1050), variant)


def all_cases(cc: int) -> list[Case]:
    """Return cases of every variant of every kernel for a compute capability."""
    found = []
    for dtype in HALVES:
        for head_dim in attention.HEAD_DIMS:
            for causal in (False, True):
                for variant in range(len(attention.VARIANTS[head_dim])):
                    found += _attention(dtype, head_dim, causal, cc, variant)
            found.append(_fused(dtype, head_dim, cc))
            found += _attention(dtype, head_dim, False, cc, gap=2)
    for dtype in DTYPES:
        for sizes in (_SMALL, _MEDIUM, _LARGE):
            for channels_last in (False, True):
                for added in ({}, _ADDED):
                    shape = {**sizes, "channels_last": channels_last, **added}
                    found += _group_norm(dtype, cc, _ALL, **shape)
        for residual in (False, True):
            found += _rows(dtype, cc, _ALL, residual)
        found += _gates(dtype, cc, _ALL)
    return list({case.name: case for case in found}.values())
