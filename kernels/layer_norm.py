"""Layer normalisation of the transformer blocks, alone or after a residual addition."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdengine.errors import ConfigError
from sdengine.kernels import dtypes, grids, launching, support
from sdengine.kernels.variants import Specialisation, Variant

if TYPE_CHECKING:
    from torch import Tensor

OP = "layer_norm"
MAX_WIDTH = 8192
_SHARED_BYTES = 2048


@dataclass(frozen=True)
class LayerNormShape:
    """Sizes of one normalisation of rows; residual: another tensor is added, the sum is output."""

    rows: int
    width: int
    residual: bool = False


def supports(shape: LayerNormShape, dtype: str, cc: int | None) -> tuple[bool, str]:
    """Return whether the kernel computes a shape on a target, and why not.

    Args:
        shape: sizes.
        dtype: of all tensors.
        cc: compute capability times ten, or None for Triton's interpreter.
    """
    known, reason = support.of_dtype(dtype, cc)
    if not known:
        return known, reason
    if not 1 <= shape.width <= MAX_WIDTH:
        return False, f"rows of {shape.width}; 1 to {MAX_WIDTH} fit a program's registers"
    if shape.rows > grids.MAX_INT32:
        return False, f"{shape.rows} rows; at most {grids.MAX_INT32}"
    return True, ""


def variants(shape: LayerNormShape, dtype: str, cc: int | None) -> tuple[Variant, ...]:
    """Return the variants for a width, the presumably fastest first: about 2048 numbers each."""
    pad = grids.next_power_of_two(shape.width)
    found = []
    for elements, warps in ((2048, 4), (1024, 4), (4096, 8), (8192, 8)):
        rows = elements // pad
        if rows >= 1:
            name = f"r{rows}w{warps}"
            found.append(Variant(name, {"ROWS": rows}, warps, 1, _SHARED_BYTES))
    return tuple(found)


def specialise(shape: LayerNormShape, dtype: str, variant: Variant, eps: float) -> Specialisation:
    """Return what to compile.

    Args:
        shape: sizes; the number of rows stays open.
        dtype: of all tensors.
        variant: one of `variants`.
        eps: added to the variance.
    """
    names = ("x", "weight", "bias", "residual", "num_rows", "out", "total_out")
    optional = ("residual", "total_out")
    present = [name for name in names if shape.residual or name not in optional]
    types = {"num_rows": "i32"}
    absent = {name: None for name in optional if name not in present}
    constants = {
        "EPS": eps,
        "WIDTH": shape.width,
        "PAD_WIDTH": grids.next_power_of_two(shape.width),
        **variant.constants,
        **absent,
    }
    return Specialisation(
        OP,
        "layer_norm.layer_norm_kernel",
        tuple((name, types.get(name, dtypes.POINTER_TYPES[dtype])) for name in present),
        constants,
        variant,
        frozenset(present) - {"num_rows"},
    )


def cost(shape: LayerNormShape, dtype: str) -> tuple[int, int]:
    """Return the bytes that must move, each read or written once, and the operations."""
    elements = shape.rows * shape.width
    tensors = 4 if shape.residual else 2
    moved = (tensors * elements + 2 * shape.width) * dtypes.ELEMENT_BYTES[dtype]
    return moved, (7 + shape.residual) * elements


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, *, variant: Variant | None = None
) -> Tensor:
    """Normalise rows, scale and shift each column.

    Args:
        x: [...,N] fp16, bf16 or fp32, contiguous.
        weight, bias: [N] of x's type.
        eps: added to the variance.
        variant: how to cut the work, or None for the first of `variants`.

    Returns:
        As x.

    Raises:
        ConfigError: shapes, types, layouts or the device are not supported; the message says why.
        BackendUnavailableError: triton is not installed.
    """
    return _run({"x": x, "weight": weight, "bias": bias}, eps, variant)["out"]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    variant: Variant | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise x + residual; return that and the sum, for the next residual connection.

    Raises:
        ConfigError, BackendUnavailableError: as `layer_norm`.
    """
    tensors = {"x": x, "weight": weight, "bias": bias, "residual": residual}
    done = _run(tensors, eps, variant)
    return done["out"], done["total_out"]


def _run(given: dict[str, Tensor], eps: float, variant: Variant | None) -> dict[str, Tensor]:
    import torch

    x = given["x"]
    _check(given)
    width = x.shape[-1]
    shape = LayerNormShape(x.numel() // width, width, "residual" in given)
    dtype = dtypes.dtype_name(x)
    cc = launching.compute_capability(given)
    support.require(supports(shape, dtype, cc), OP)
    chosen = variant or variants(shape, dtype, cc)[0]
    names = ("out", "total_out") if shape.residual else ("out",)
    outputs = {name: torch.empty_like(x) for name in names}
    grid = (grids.cdiv(shape.rows, chosen.constants["ROWS"]),)
    arguments = {**given, "num_rows": shape.rows, **outputs}
    launching.launch(specialise(shape, dtype, chosen, eps), grid, arguments)
    return outputs


def _check(given: dict[str, Tensor]) -> None:
    x = given["x"]
    if x.ndim < 1 or x.shape[-1] < 1:
        raise ConfigError.for_field("x", list(x.shape), "[...,N] with N of 1 and more")
    for name, tensor in given.items():
        expected = x.shape if name in ("x", "residual") else x.shape[-1:]
        if tensor.shape != expected or tensor.dtype != x.dtype or not tensor.is_contiguous():
            found = (list(tensor.shape), dtypes.dtype_name(tensor), tensor.stride())
            accepted = f"{list(expected)} of type {dtypes.dtype_name(x)}, contiguous"
            raise ConfigError.for_field(name, found, accepted)
