"""Group normalisation of the networks' blocks, with what stands around it: additions and SiLU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sdengine.errors import ConfigError
from sdengine.kernels import dtypes, grids, launching, support
from sdengine.kernels.group_norm_variants import GroupNormShape, is_slab, is_split, variants
from sdengine.kernels.variants import Specialisation, Variant

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["GroupNormShape", "is_slab", "is_split", "variants"]
OP = "group_norm_silu"
MAX_GROUP_CHANNELS = 256


def supports(shape: GroupNormShape, dtype: str, cc: int | None) -> tuple[bool, str]:
    """Return whether the kernels compute a shape on a target, and why not.

    Args:
        shape: sizes.
        dtype: of the maps.
        cc: compute capability times ten, or None for Triton's interpreter.
    """
    known, reason = support.of_dtype(dtype, cc)
    if not known:
        return known, reason
    if shape.num_groups < 1 or shape.channels < 1 or shape.channels % shape.num_groups:
        return False, f"{shape.channels} channels do not split into {shape.num_groups} groups"
    if shape.group_channels > MAX_GROUP_CHANNELS:
        return False, (
            f"{shape.group_channels} channels a group; at most {MAX_GROUP_CHANNELS} fit a program"
        )
    if shape.positions < 1:
        return False, "a map without positions has no mean"
    if shape.channels * shape.positions > grids.MAX_INT32:
        return False, f"an image of {shape.channels} x {shape.positions} elements; at most 2^31 - 1"
    if max(shape.batch, shape.num_groups) > grids.MAX_YZ:
        return False, f"{shape.batch} images, {shape.num_groups} groups; at most {grids.MAX_YZ}"
    return True, ""


def specialise(
    shape: GroupNormShape,
    dtype: str,
    variant: Variant,
    eps: float,
    silu: bool = True,
    divisor: int | None = None,
) -> Specialisation:
    """Return what to compile for a variant of one kernel.

    Args:
        shape: sizes; the number of images stays open, and that of positions up to the shape's.
        dtype: of the maps, weights and time embedding.
        variant: one of `variants` that is not split.
        eps: added to the variance.
        silu: whether y * sigmoid(y) follows.
        divisor: of the number of positions at every launch; None for the shape's own number.
    """
    names = ("x", "weight", "bias", "residual", "embedding")
    constants = {"EPS": eps, "SILU": silu, **_layout(shape, variant), **variant.constants}
    return _specialisation("", shape, dtype, variant, names, constants, divisor)


def specialise_partial(
    shape: GroupNormShape, dtype: str, variant: Variant, divisor: int | None = None
) -> Specialisation:
    """Return the first kernel of a split variant; it writes `partials`, see `partials_sizes`."""
    names = ("x", "residual", "embedding")
    constants = {**_layout(shape, variant), **variant.constants}
    return _specialisation("partial", shape, dtype, variant, names, constants, divisor)


def specialise_apply(
    shape: GroupNormShape,
    dtype: str,
    variant: Variant,
    eps: float,
    silu: bool = True,
    divisor: int | None = None,
) -> Specialisation:
    """Return the second kernel of a split variant: reads the partials and writes the result."""
    names = ("x", "weight", "bias", "residual", "embedding", "partials")
    chunks = grids.cdiv(shape.positions, variant.constants["CHUNK_P"])
    constants = {
        "EPS": eps,
        "SILU": silu,
        "PAD_CHUNKS": grids.next_power_of_two(chunks),
        **_layout(shape, variant),
        **variant.constants,
    }
    return _specialisation("apply", shape, dtype, variant, names, constants, divisor)


def partials_sizes(shape: GroupNormShape, variant: Variant) -> tuple[int, ...]:
    """Return [B,2,chunks,groups], of the means and sums of squares, fp32, between two kernels."""
    chunks = grids.cdiv(shape.positions, variant.constants["CHUNK_P"])
    return shape.batch, 2, chunks, shape.num_groups


def _layout(shape: GroupNormShape, variant: Variant) -> dict[str, Any]:
    sizes = {"NUM_GROUPS": shape.num_groups, "GROUP_C": shape.group_channels}
    if not is_slab(variant):
        return {**sizes, "NHWC": shape.channels_last, "PAD_C": shape.pad_channels}
    touched = (variant.constants["SUB_C"] - 2) // shape.group_channels + 2
    if variant.constants["SUB_C"] % shape.group_channels == 0:
        touched = variant.constants["SUB_C"] // shape.group_channels
    pad_groups = grids.next_power_of_two(shape.num_groups)
    local = min(grids.next_power_of_two(touched), pad_groups)
    return {**sizes, "PAD_GROUPS": pad_groups, "PAD_LOCAL": local}


def _specialisation(
    part: str,
    shape: GroupNormShape,
    dtype: str,
    variant: Variant,
    inputs: tuple[str, ...],
    constants: dict[str, Any],
    divisor: int | None,
) -> Specialisation:
    """Leave out the arguments that a shape lacks: they are constants, None."""
    outputs = ("partials",) if part == "partial" else ("out", "total_out")
    module = "group_norm_slab" if is_slab(variant) else "group_norm"
    function = "_".join(filter(None, (module, part, "kernel")))
    present = {
        "residual": shape.residual,
        "embedding": shape.time_embedding,
        "total_out": shape.total,
    }
    absent = {name for name in (*inputs, *outputs) if not present.get(name, True)}
    types = {"partials": "*fp32", "num_positions": "i32"}
    arguments = tuple(
        (name, types.get(name, dtypes.POINTER_TYPES[dtype]))
        for name in (*inputs, "num_positions", *outputs)
        if name not in absent
    )
    aligned = {name for name, _ in arguments if name != "num_positions"}
    if (divisor or shape.positions) % 16 == 0:
        aligned.add("num_positions")
    all_constants = {**constants, **dict.fromkeys(sorted(absent))}
    return Specialisation(
        OP, f"{module}.{function}", arguments, all_constants, variant, frozenset(aligned)
    )


def cost(shape: GroupNormShape, dtype: str) -> tuple[int, int]:
    """Return the bytes that must move, each read or written once, and the operations."""
    elements = shape.batch * shape.channels * shape.positions
    maps = 2 + shape.residual + shape.total
    vectors = 2 * shape.channels + shape.time_embedding * shape.batch * shape.channels
    added = shape.residual + shape.time_embedding
    # Mean, deviation and its square: 4. Normalise, scale and shift: 4. SiLU: 4.
    return (maps * elements + vectors) * dtypes.ELEMENT_BYTES[dtype], (12 + added) * elements


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool = True,
    *,
    residual: Tensor | None = None,
    time_embedding: Tensor | None = None,
    variant: Variant | None = None,
) -> Tensor:
    """Add, normalise groups of channels, scale and shift each channel, and apply SiLU.

    Args:
        x: [B,C,H,W] or [B,C,...] fp16, bf16 or fp32, contiguous; with four dimensions also in
            channels-last memory.
        weight, bias: [C] of x's type.
        num_groups: each spans C / num_groups neighbouring channels and every position.
        eps: added to the variance.
        silu: whether y * sigmoid(y) follows.
        residual: as x, added to it before; None for none.
        time_embedding: [B,C] of x's type, added to every position; None for none.
        variant: how to cut the work, or None for the first of `variants`.

    Returns:
        As x, in x's memory layout.

    Raises:
        ConfigError: shapes, types, layouts or the device are not supported; the message says why.
        BackendUnavailableError: triton is not installed.
    """
    return _run(x, weight, bias, num_groups, eps, silu, residual, time_embedding, variant, False)[0]


def add_group_norm_silu(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool = True,
    *,
    time_embedding: Tensor | None = None,
    variant: Variant | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `group_norm_silu` does and return the sum too, for the next skip connection.

    Returns:
        The activated map and x + residual + time_embedding, both as x.

    Raises:
        ConfigError, BackendUnavailableError: as `group_norm_silu`.
    """
    out, total = _run(
        x, weight, bias, num_groups, eps, silu, residual, time_embedding, variant, True
    )
    assert total is not None
    return out, total


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_groups: int,
    eps: float,
    silu: bool,
    residual: Tensor | None,
    time_embedding: Tensor | None,
    variant: Variant | None,
    wants_total: bool,
) -> tuple[Tensor, Tensor | None]:
    import torch

    given = {"x": x, "weight": weight, "bias": bias}
    optional = {"residual": residual, "embedding": time_embedding}
    given.update({name: tensor for name, tensor in optional.items() if tensor is not None})
    _check_shapes(given)
    shape = GroupNormShape(
        x.shape[0],
        x.shape[1],
        x[0, 0].numel() if x.shape[0] else 1,
        num_groups,
        not x.is_contiguous(),
        residual is not None,
        time_embedding is not None,
        wants_total,
    )
    dtype = dtypes.dtype_name(x)
    cc = launching.compute_capability(given)
    support.require(supports(shape, dtype, cc), OP)
    outputs = {"out": torch.empty_like(x)}
    if wants_total:
        outputs["total_out"] = torch.empty_like(x)
    values = {**given, **outputs, "num_positions": shape.positions}
    chosen = variant or variants(shape, dtype, cc)[0]
    if is_split(chosen):
        chunks = grids.cdiv(shape.positions, chosen.constants["CHUNK_P"])
        groups = () if is_slab(chosen) else (num_groups,)
        grid = (chunks, *groups, shape.batch)
        sizes = partials_sizes(shape, chosen)
        values["partials"] = torch.empty(sizes, dtype=torch.float32, device=x.device)
        _launch(specialise_partial(shape, dtype, chosen), grid, values)
        _launch(specialise_apply(shape, dtype, chosen, eps, silu), grid, values)
    else:
        specialisation = specialise(shape, dtype, chosen, eps, silu)
        _launch(specialisation, (num_groups, shape.batch), values)
    return outputs["out"], outputs.get("total_out")


def _launch(specialisation: Specialisation, grid: tuple[int, ...], values: dict[str, Any]) -> None:
    arguments = {name: values[name] for name, _ in specialisation.arguments}
    launching.launch(specialisation, grid, arguments)


def _check_shapes(given: dict[str, Tensor]) -> None:
    """Refuse tensors that do not go together or lie otherwise than the kernels read them."""
    x = given["x"]
    if x.ndim < 2:
        raise ConfigError.for_field("x", list(x.shape), "[B,C,...]")
    channels_last = x.ndim == 4 and x.permute(0, 2, 3, 1).is_contiguous()
    if not (x.is_contiguous() or channels_last):
        raise ConfigError.for_field(
            "x.stride()", x.stride(), "a contiguous or channels-last map", "Call x.contiguous()."
        )
    expected = {
        "weight": x.shape[1:2],
        "bias": x.shape[1:2],
        "residual": x.shape,
        "embedding": x.shape[:2],
    }
    for name, tensor in given.items():
        if name == "x":
            continue
        if tensor.shape != expected[name] or tensor.dtype != x.dtype:
            found = (list(tensor.shape), dtypes.dtype_name(tensor))
            accepted = f"{list(expected[name])} of type {dtypes.dtype_name(x)}"
            raise ConfigError.for_field(name, found, accepted)
        if name == "residual" and not x.is_contiguous():
            tensor = tensor.permute(0, 2, 3, 1)
        if not tensor.is_contiguous():
            accepted = "the memory layout of x" if name == "residual" else "a contiguous tensor"
            raise ConfigError.for_field(f"{name}.stride()", given[name].stride(), accepted)
