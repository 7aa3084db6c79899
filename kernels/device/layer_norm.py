"""Layer normalisation of rows, with the residual connection that precedes it.

A program reads a few whole rows once, keeps them in registers, and writes them once: 2 times the
rows' bytes, or 4 with a residual and its sum, where separate operations move 5. A width that is no
power of two is filled up with masked lanes, which cost no bytes.

Source: "Layer Normalization" (Ba, Kiros and Hinton 2016), equations 3 and 4.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def layer_norm_kernel(
    x,
    weight,
    bias,
    residual,
    num_rows,
    out,
    total_out,
    EPS: tl.constexpr,
    WIDTH: tl.constexpr,
    PAD_WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Normalise ROWS rows; grid: (blocks of rows,).

    x, residual, out, total_out: [R,WIDTH]; residual and total_out may be None.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, PAD_WIDTH)
    exists = columns < WIDTH
    mask = (rows < num_rows)[:, None] & exists[None, :]
    offsets = rows[:, None] * WIDTH + columns[None, :]
    value = tl.load(x + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + offsets, mask=mask, other=0.0).to(tl.float32)
    if total_out is not None:
        tl.store(total_out + offsets, value.to(total_out.dtype.element_ty), mask=mask)
    mean = tl.sum(value, 1) / WIDTH
    deviation = tl.where(mask, value - mean[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(deviation * deviation, 1) / WIDTH + EPS)
    scale = tl.load(weight + columns, mask=exists, other=0.0).to(tl.float32)
    shift = tl.load(bias + columns, mask=exists, other=0.0).to(tl.float32)
    y = deviation * inverse[:, None] * scale[None, :] + shift[None, :]
    tl.store(out + offsets, y.to(out.dtype.element_ty), mask=mask)
