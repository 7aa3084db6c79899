"""Group normalisation of the networks' blocks, with what stands around it: additions and SiLU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdengine.errors import ConfigError
from sdengine.kernels import dtypes, grids, launching, support
from sdengine.kernels.variants import Specialisation, Variant

if TYPE_CHECKING:
    from torch import Tensor

OP = "group_norm_silu"
MAX_GROUP_CHANNELS = 256
# What a program holds at once: few enough for the registers, enough to hide the memory's latency.
_TILE_ELEMENTS = 2048
_RESIDENT_ELEMENTS = {4: 4096, 8: 8192}
# A group of more elements is shared out among several programs, as many as keep a GPU busy; each of
# them reads all partial statistics, so there are not too many.
_SPLIT_ABOVE_ELEMENTS = 16 * 1024
_CHUNK_ELEMENTS = 8 * 1024
_MAX_CHUNKS = 128
_SHARED_BYTES = 1024


@dataclass(frozen=True)
class GroupNormShape:
    """Sizes of one normalisation, and what is added before it.

    Args:
        batch, channels, positions: of the map; positions is height times width.
        num_groups: of channels, normalised apart.
        channels_last: NHWC in memory, not NCHW.
        residual: another map is added before.
        time_embedding: a number for each image and channel is added before.
        total: the sum is an output as well.
    """

    batch: int
    channels: int
    positions: int
    num_groups: int
    channels_last: bool = False
    residual: bool = False
    time_embedding: bool = False
    total: bool = False

    @property
    def group_channels(self) -> int:
        """Channels of a group."""
        return self.channels // self.num_groups

    @property
    def pad_channels(self) -> int:
        """Channels of a group with those that only fill it up to a power of two."""
        return int(grids.next_power_of_two(self.group_channels))


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


def variants(shape: GroupNormShape, dtype: str, cc: int | None) -> tuple[Variant, ...]:
    """Return the variants for a shape, the presumably fastest first.

    "resident" reads a group once and keeps it; "looped" reads it twice; "split" has CHUNK_P and is
    two kernels, `specialise_partial` and `specialise_apply`.
    """
    found = []
    padded = shape.pad_channels * grids.next_power_of_two(shape.positions)
    for warps, most in _RESIDENT_ELEMENTS.items():
        if padded <= most:
            block = grids.next_power_of_two(shape.positions)
            constants = {"BLOCK_P": block, "RESIDENT": 1}
            found.append(Variant(f"resident_p{block}w{warps}", constants, warps, 1, _SHARED_BYTES))
    looped = []
    for warps in (8, 4):
        block = max(1, _TILE_ELEMENTS * warps // 8 // shape.pad_channels)
        constants = {"BLOCK_P": block, "RESIDENT": 0}
        looped.append(Variant(f"looped_p{block}w{warps}", constants, warps, 1, _SHARED_BYTES))
    if shape.group_channels * shape.positions <= _SPLIT_ABOVE_ELEMENTS:
        return (*found, *looped)
    block = max(1, _TILE_ELEMENTS // shape.pad_channels)
    fewest = grids.next_power_of_two(grids.cdiv(shape.positions, _MAX_CHUNKS))
    chunk = max(block, _CHUNK_ELEMENTS // shape.pad_channels, fewest)
    constants = {"BLOCK_P": block, "CHUNK_P": chunk}
    return (Variant(f"split_p{block}c{chunk}w8", constants, 8, 1, _SHARED_BYTES), *looped)


def is_split(variant: Variant) -> bool:
    """Return whether a variant is two kernels."""
    return "CHUNK_P" in variant.constants


def specialise(
    shape: GroupNormShape, dtype: str, variant: Variant, eps: float, silu: bool = True
) -> Specialisation:
    """Return what to compile for a variant of one kernel.

    Args:
        shape: sizes; the number of images stays open.
        dtype: of the maps, weights and time embedding.
        variant: one of `variants` that is not split.
        eps: added to the variance.
        silu: whether y * sigmoid(y) follows.
    """
    names = ("x", "weight", "bias", "residual", "embedding")
    constants = {"EPS": eps, "SILU": silu, **_layout(shape), **variant.constants}
    return _specialisation("group_norm_kernel", shape, dtype, variant, names, constants)


def specialise_partial(shape: GroupNormShape, dtype: str, variant: Variant) -> Specialisation:
    """Return the first kernel of a split variant: writes partials [B,groups,chunks,2] fp32."""
    names = ("x", "residual", "embedding")
    constants = {**_layout(shape), **variant.constants}
    return _specialisation("group_norm_partial_kernel", shape, dtype, variant, names, constants)


def specialise_apply(
    shape: GroupNormShape, dtype: str, variant: Variant, eps: float, silu: bool = True
) -> Specialisation:
    """Return the second kernel of a split variant: reads the partials and writes the result."""
    names = ("x", "weight", "bias", "residual", "embedding", "partials")
    chunks = grids.cdiv(shape.positions, variant.constants["CHUNK_P"])
    constants = {
        "EPS": eps,
        "SILU": silu,
        "PAD_CHUNKS": grids.next_power_of_two(chunks),
        **_layout(shape),
        **variant.constants,
    }
    return _specialisation("group_norm_apply_kernel", shape, dtype, variant, names, constants)


def _layout(shape: GroupNormShape) -> dict[str, Any]:
    return {
        "NHWC": shape.channels_last,
        "NUM_GROUPS": shape.num_groups,
        "GROUP_C": shape.group_channels,
        "PAD_C": shape.pad_channels,
    }


def _specialisation(
    function: str,
    shape: GroupNormShape,
    dtype: str,
    variant: Variant,
    inputs: tuple[str, ...],
    constants: dict[str, Any],
) -> Specialisation:
    """Leave out the arguments that a shape lacks: they are constants, None."""
    outputs = ("partials",) if function.endswith("partial_kernel") else ("out", "total_out")
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
    if shape.positions % 16 == 0:
        aligned.add("num_positions")
    all_constants = {**constants, **dict.fromkeys(sorted(absent))}
    return Specialisation(
        OP, f"group_norm.{function}", arguments, all_constants, variant, frozenset(aligned)
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
        grid = (chunks, num_groups, shape.batch)
        sizes = (shape.batch, num_groups, chunks, 2)
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
