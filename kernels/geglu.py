"""The gated activation of the transformer blocks' feed-forward layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError
from sdengine.kernels import dtypes, grids, launching, support
from sdengine.kernels.variants import Specialisation, Variant

if TYPE_CHECKING:
    from torch import Tensor

OP = "geglu"
_SHARED_BYTES = 0
VARIANTS = (
    Variant("r1n1024w4", {"ROWS": 1, "BLOCK_WIDTH": 1024}, 4, 1, _SHARED_BYTES),
    Variant("r4n256w4", {"ROWS": 4, "BLOCK_WIDTH": 256}, 4, 1, _SHARED_BYTES),
    Variant("r1n512w4", {"ROWS": 1, "BLOCK_WIDTH": 512}, 4, 1, _SHARED_BYTES),
)


@dataclass(frozen=True)
class GegluShape:
    """Sizes of one activation: rows of 2 * width numbers become rows of width."""

    rows: int
    width: int


def supports(shape: GegluShape, dtype: str, cc: int | None) -> tuple[bool, str]:
    """Return whether the kernel computes a shape on a target, and why not.

    Args:
        shape: sizes.
        dtype: of input and output.
        cc: compute capability times ten, or None for Triton's interpreter.
    """
    known, reason = support.of_dtype(dtype, cc)
    if not known:
        return known, reason
    smallest = min(variant.constants["BLOCK_WIDTH"] for variant in VARIANTS)
    if not 1 <= shape.width <= smallest * grids.MAX_YZ:
        return False, f"rows of {shape.width} results; 1 to {smallest * grids.MAX_YZ} are covered"
    if shape.rows > grids.MAX_INT32:
        return False, f"{shape.rows} rows; at most {grids.MAX_INT32}"
    return True, ""


def variants(shape: GegluShape, dtype: str, cc: int | None) -> tuple[Variant, ...]:
    """Return the variants, those first that leave the fewest lanes without work."""

    def idle(variant: Variant) -> int:
        rows, block = variant.constants["ROWS"], variant.constants["BLOCK_WIDTH"]
        computed = grids.cdiv(shape.rows, rows) * rows * grids.cdiv(shape.width, block) * block
        return int(computed) - shape.rows * shape.width

    return tuple(sorted(VARIANTS, key=idle))


def specialise(shape: GegluShape, dtype: str, variant: Variant) -> Specialisation:
    """Return what to compile; the number of rows stays open.

    Args:
        shape: sizes.
        dtype: of input and output.
        variant: one of `variants`.
    """
    pointer = dtypes.POINTER_TYPES[dtype]
    return Specialisation(
        OP,
        "geglu.geglu_kernel",
        (("x", pointer), ("num_rows", "i32"), ("out", pointer)),
        {"WIDTH": shape.width, **variant.constants},
        variant,
        frozenset({"x", "out"}),
    )


def cost(shape: GegluShape, dtype: str) -> tuple[int, int]:
    """Return the bytes that must move and the operations, erf counted as one."""
    elements = shape.rows * shape.width
    return 3 * elements * dtypes.ELEMENT_BYTES[dtype], 6 * elements


def geglu(x: Tensor, *, variant: Variant | None = None) -> Tensor:
    """Multiply the first half of each row by GELU of the second half.

    Args:
        x: [...,2N] fp16, bf16 or fp32, contiguous: the values and then the gates.
        variant: how to cut the work, or None for the first of `variants`.

    Returns:
        [...,N] of x's type.

    Raises:
        ConfigError: shape, type, layout or the device are not supported; the message says why.
        BackendUnavailableError: triton is not installed.
    """
    import torch

    if x.ndim < 1 or x.shape[-1] < 2 or x.shape[-1] % 2 or not x.is_contiguous():
        found = (list(x.shape), x.stride())
        raise ConfigError.for_field("x", found, "[...,2N] with N of 1 and more, contiguous")
    width = x.shape[-1] // 2
    shape = GegluShape(x.numel() // (2 * width), width)
    dtype = dtypes.dtype_name(x)
    cc = launching.compute_capability({"x": x})
    support.require(supports(shape, dtype, cc), OP)
    chosen = variant or variants(shape, dtype, cc)[0]
    out = torch.empty((*x.shape[:-1], width), dtype=x.dtype, device=x.device)
    rows, block = chosen.constants["ROWS"], chosen.constants["BLOCK_WIDTH"]
    grid = (grids.cdiv(shape.rows, rows), grids.cdiv(width, block))
    arguments = {"x": x, "num_rows": shape.rows, "out": out}
    launching.launch(specialise(shape, dtype, chosen), grid, arguments)
    return out
