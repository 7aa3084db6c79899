"""Plugins of group normalisation: one kernel, or two that share large groups out.

A plugin has no memory of its own, so what the first of two kernels adds up is a tensor between two
plugins. Maps are offered in rows of a channel and, where channels fill 16 bytes, in rows of all
channels (HWC8), in which TensorRT's 16-bit convolutions work; else it would reorder the map before
and after each.
"""

from __future__ import annotations

import importlib
from typing import Any

from sdengine.compilers.tensorrt.plugin_parts import (
    MAP_TYPES,
    MOMENT_TYPES,
    PluginTarget,
    combination,
    dtype_of,
    launch,
    number,
    portable,
    register,
)
from sdengine.kernels import group_norm
from sdengine.kernels.group_norm import GroupNormShape, is_slab
from sdengine.kernels.group_norm_variants import has_slabs, paired_variants, single_variants
from sdengine.kernels.variants import Variant

ROWS, CHANNELS_LAST = "LINEAR", "HWC8"
_CHANNELS_OF_A_VECTOR = 8


def register_group_norm(trtp: Any, target: PluginTarget) -> None:
    """Register the plugins of the module `tensorrt.plugin` for a target."""
    _register_statistics(trtp, target)
    for silu in (False, True):
        _register_single(trtp, target, silu=silu)
        _register_apply(trtp, target, silu=silu)


def group_norm_variants(
    channels: int,
    num_groups: int,
    dtype: str,
    cc: int,
    most_positions: int = 0,
    channels_last: bool = False,
) -> tuple[Variant, ...]:
    """Return the tactics of the plugin of one kernel; a tactic is a number from 1 on.

    Args:
        channels, num_groups: of the map.
        dtype: of the map.
        cc: compute capability times ten.
        most_positions: of all profiles; 0 where they are not known.
        channels_last: whether the map lies in HWC8.
    """
    positions = most_positions or (1 << 30) // max(channels, 1)
    shape = GroupNormShape(1, channels, positions, num_groups, channels_last)
    if not group_norm.supports(shape, dtype, cc)[0]:
        return ()
    return portable(single_variants(shape))


def layouts_of(x: Any) -> tuple[str, ...]:
    """Return the layouts that a map is offered in."""
    fits = len(x.shape_expr) == 4 and number(x, 1) % _CHANNELS_OF_A_VECTOR == 0
    return (ROWS, CHANNELS_LAST) if fits else (ROWS,)


def _register_single(trtp: Any, target: PluginTarget, *, silu: bool) -> None:
    def describe(
        x: Any, weight: Any, bias: Any, num_groups: int, epsilon: float, divisor: int,
        most_positions: int,
    ) -> Any:  # fmt: skip
        return x.like()

    def tactics(
        x: Any, weight: Any, bias: Any, num_groups: int, epsilon: float, divisor: int,
        most_positions: int, outputs: Any,
    ) -> Any:  # fmt: skip
        types = [MAP_TYPES] * 4
        return [
            combination(trtp, types, [layout, ROWS, ROWS, layout], variants)
            for layout in layouts_of(x)
            for variants in [
                group_norm_variants(
                    number(x, 1), num_groups, "float16", target.cc, most_positions, layout != ROWS
                )
            ]
        ]

    def implement(
        x: Any, weight: Any, bias: Any, num_groups: int, epsilon: float, divisor: int,
        most_positions: int, outputs: Any, tactic: int,
    ) -> Any:  # fmt: skip
        channels, dtype, last = number(x, 1), dtype_of(x), x.format.name == CHANNELS_LAST
        found = group_norm_variants(channels, num_groups, dtype, target.cc, most_positions, last)
        shape = GroupNormShape(1, channels, max(1, most_positions), num_groups, last)
        specialisation = group_norm.specialise(
            shape, dtype, found[tactic - 1], epsilon, silu, divisor
        )
        grid = (num_groups, x.shape_expr[0], 1)
        return launch(trtp, specialisation, target, grid, {"num_positions": _positions(x)})

    attributes = {"num_groups": int, "epsilon": float, "divisor": int, "most_positions": int}
    name = "group_norm_silu" if silu else "group_norm"
    register(trtp, name, ("x", "weight", "bias"), attributes, describe, tactics, implement)


def _register_statistics(trtp: Any, target: PluginTarget) -> None:
    trt = importlib.import_module(trtp.__name__.rpartition(".")[0])

    def describe(x: Any, num_groups: int, divisor: int, most_positions: int, chunk: int) -> Any:
        sizes = (x.shape_expr[0], 2, trtp.cdiv(_positions(x), chunk), num_groups)
        return trtp.from_shape_expr(sizes, dtype=trt.float32)

    def tactics(
        x: Any, num_groups: int, divisor: int, most_positions: int, chunk: int, outputs: Any
    ) -> Any:
        return [
            combination(trtp, [MAP_TYPES, MOMENT_TYPES], [layout, ROWS], variants)
            for layout, variants in _paired(x, num_groups, most_positions)
        ]

    def implement(
        x: Any, num_groups: int, divisor: int, most_positions: int, chunk: int, outputs: Any,
        tactic: int,
    ) -> Any:  # fmt: skip
        shape, variant = _chosen(x, num_groups, most_positions, chunk, tactic)
        specialisation = group_norm.specialise_partial(shape, dtype_of(x), variant, divisor)
        grid = _paired_grid(trtp, x, variant, num_groups)
        return launch(trtp, specialisation, target, grid, {"num_positions": _positions(x)})

    names = ("num_groups", "divisor", "most_positions", "chunk")
    attributes: dict[str, type] = dict.fromkeys(names, int)
    register(trtp, "group_norm_statistics", ("x",), attributes, describe, tactics, implement)


def _register_apply(trtp: Any, target: PluginTarget, *, silu: bool) -> None:
    def describe(
        x: Any, weight: Any, bias: Any, moments: Any, num_groups: int, epsilon: float,
        divisor: int, most_positions: int, chunk: int,
    ) -> Any:  # fmt: skip
        return x.like()

    def tactics(
        x: Any, weight: Any, bias: Any, moments: Any, num_groups: int, epsilon: float,
        divisor: int, most_positions: int, chunk: int, outputs: Any,
    ) -> Any:  # fmt: skip
        types = [MAP_TYPES, MAP_TYPES, MAP_TYPES, MOMENT_TYPES, MAP_TYPES]
        return [
            combination(trtp, types, [layout, ROWS, ROWS, ROWS, layout], variants)
            for layout, variants in _paired(x, num_groups, most_positions)
        ]

    def implement(
        x: Any, weight: Any, bias: Any, moments: Any, num_groups: int, epsilon: float,
        divisor: int, most_positions: int, chunk: int, outputs: Any, tactic: int,
    ) -> Any:  # fmt: skip
        shape, variant = _chosen(x, num_groups, most_positions, chunk, tactic)
        specialisation = group_norm.specialise_apply(
            shape, dtype_of(x), variant, epsilon, silu, divisor
        )
        grid = _paired_grid(trtp, x, variant, num_groups)
        return launch(trtp, specialisation, target, grid, {"num_positions": _positions(x)})

    attributes = {
        "num_groups": int, "epsilon": float, "divisor": int, "most_positions": int, "chunk": int,
    }  # fmt: skip
    name = "group_norm_silu_apply" if silu else "group_norm_apply"
    tensors = ("x", "weight", "bias", "moments")
    register(trtp, name, tensors, attributes, describe, tactics, implement)


def _paired(x: Any, num_groups: int, most_positions: int) -> list[tuple[str, tuple[Variant, ...]]]:
    """Return the layouts of a map and the tactics in each."""
    found = []
    for layout in layouts_of(x):
        shape = GroupNormShape(1, number(x, 1), most_positions, num_groups, layout != ROWS)
        if layout == ROWS or has_slabs(shape):
            found.append((layout, portable(paired_variants(shape))))
    return found


def _chosen(
    x: Any, num_groups: int, most_positions: int, chunk: int, tactic: int
) -> tuple[GroupNormShape, Variant]:
    last = x.format.name == CHANNELS_LAST
    shape = GroupNormShape(1, number(x, 1), most_positions, num_groups, last)
    variant = portable(paired_variants(shape))[tactic - 1]
    assert variant.constants["CHUNK_P"] == chunk, "the statistics are of other chunks"
    return shape, variant


def _paired_grid(trtp: Any, x: Any, variant: Variant, num_groups: int) -> tuple[Any, Any, Any]:
    chunks = trtp.cdiv(_positions(x), variant.constants["CHUNK_P"])
    if is_slab(variant):
        return chunks, x.shape_expr[0], 1
    return chunks, num_groups, x.shape_expr[0]


def _positions(x: Any) -> Any:
    """Return height times width, as an expression."""
    positions = x.shape_expr[2]
    for axis in range(3, len(x.shape_expr)):
        positions = positions * x.shape_expr[axis]
    return positions
