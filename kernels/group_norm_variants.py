"""Variants of group normalisation: how a map is shared out among programs.

Where a whole group fits the registers, one program reads it once. Else a map is read twice: in NCHW
by a program for each group, or by several for each where groups are few and large; in NHWC by
programs that take all channels of some positions, because the channels of one group are few bytes
at each position.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from sdengine.kernels import dtypes, grids
from sdengine.kernels.targets import WARP_SIZE
from sdengine.kernels.variants import Variant

# What a program holds at once: few enough for the registers, enough to hide the memory's latency.
_TILE_ELEMENTS = 2048
_RESIDENT_ELEMENTS = {4: 4096, 8: 8192}
# A group of more elements is shared out among several programs, as many as keep a GPU busy; each of
# them reads all partial statistics, so there are not too many.
_SPLIT_ABOVE_ELEMENTS = 16 * 1024
_CHUNK_ELEMENTS = 8 * 1024
_MAX_CHUNKS = 128
_SHARED_BYTES = 1024
# NHWC maps: a program takes all channels of some positions, in tiles of so many channels. Each
# reads all programs' statistics, which so stay below what it reads and writes of the map.
_SLAB_CHANNELS = (64, 256)
_SLAB_TILES = {8: 4096, 4: 2048}
_SLAB_ELEMENTS_A_SQUARED_CHUNK = 320
_SLAB_MAX_GROUPS = 64
_SLAB_SHARED_BYTES = 8192
_WIDE_ELEMENTS = 8  # of 16 bits, in 16 bytes
# Runs of fewer bytes than that touch over 1.2 times as many sectors of the memory.
_LEAST_RUN_BYTES = 80


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


def variants(shape: GroupNormShape, dtype: str, cc: int | None) -> tuple[Variant, ...]:
    """Return the variants for a shape, the presumably fastest first.

    "resident" reads a group once and keeps it; "looped" reads it twice; "split" and, for NHWC maps,
    "slab" are two kernels, `specialise_partial` and `specialise_apply`.
    """
    resident = _resident_variants(shape)
    if has_slabs(shape):
        run_bytes = shape.group_channels * dtypes.ELEMENT_BYTES[dtype]
        return (*(resident if run_bytes >= _LEAST_RUN_BYTES else ()), *_slab_variants(shape))
    if not wants_several(shape):
        return (*resident, *_looped_variants(shape))
    block = max(1, _TILE_ELEMENTS // shape.pad_channels)
    fewest = grids.next_power_of_two(grids.cdiv(shape.positions, _MAX_CHUNKS))
    chunk = max(block, _CHUNK_ELEMENTS // shape.pad_channels, fewest)
    return (_split_variant(block, chunk, 8), *_looped_variants(shape))


def single_variants(shape: GroupNormShape) -> tuple[Variant, ...]:
    """Return the variants of one kernel; `looped` ones for any number of positions."""
    return (*_resident_variants(shape), *_looped_variants(shape))


def paired_variants(shape: GroupNormShape) -> tuple[Variant, ...]:
    """Return variants of two kernels that hand over the same statistics in both layouts.

    They also agree for fewer positions than the shape's.
    """
    if has_slabs(shape):
        return tuple(_slab_variants(shape))
    chunk = chunk_positions(shape)
    found = {}
    for warps in (8, 4):
        block = min(chunk, max(1, _TILE_ELEMENTS * warps // 8 // shape.pad_channels))
        found[block] = _split_variant(block, chunk, warps)
    return tuple(found.values())


def has_slabs(shape: GroupNormShape) -> bool:
    """Return whether programs may take all groups of some positions."""
    return shape.channels_last and shape.num_groups <= _SLAB_MAX_GROUPS


def wants_several(shape: GroupNormShape) -> bool:
    """Return whether groups are so large that one program each leaves most of a GPU idle."""
    return shape.group_channels * shape.positions > _SPLIT_ABOVE_ELEMENTS


def _resident_variants(shape: GroupNormShape) -> list[Variant]:
    found = []
    padded = shape.pad_channels * grids.next_power_of_two(shape.positions)
    for warps, most in _RESIDENT_ELEMENTS.items():
        if padded <= most:
            block = grids.next_power_of_two(shape.positions)
            constants = {"BLOCK_P": block, "RESIDENT": 1}
            found.append(Variant(f"resident_p{block}w{warps}", constants, warps, 1, _SHARED_BYTES))
    return found


def _looped_variants(shape: GroupNormShape) -> list[Variant]:
    found = []
    for warps in (8, 4):
        block = max(1, _TILE_ELEMENTS * warps // 8 // shape.pad_channels)
        constants = {"BLOCK_P": block, "RESIDENT": 0}
        found.append(Variant(f"looped_p{block}w{warps}", constants, warps, 1, _SHARED_BYTES))
    return found


def _split_variant(block: int, chunk: int, warps: int) -> Variant:
    constants = {"BLOCK_P": block, "CHUNK_P": chunk}
    return Variant(f"split_p{block}c{chunk}w{warps}", constants, warps, 1, _SHARED_BYTES)


def _slab_channels(shape: GroupNormShape) -> int:
    fewest, most = _SLAB_CHANNELS
    sub = min(most, shape.channels & -shape.channels)  # no lane is idle
    return sub if sub >= fewest else min(fewest, int(grids.next_power_of_two(shape.channels)))


def chunk_positions(shape: GroupNormShape) -> int:
    """Return the positions of which a program of a slab adds up the statistics."""
    elements = shape.channels * shape.positions
    chunks = grids.next_power_of_two(math.isqrt(elements // _SLAB_ELEMENTS_A_SQUARED_CHUNK) or 1)
    chunk = grids.next_power_of_two(grids.cdiv(shape.positions, min(chunks, _MAX_CHUNKS)))
    return max(int(chunk), _least_tile(min(_SLAB_TILES)) // _slab_channels(shape))


def _least_tile(warps: int) -> int:
    return _WIDE_ELEMENTS * WARP_SIZE * warps  # 16 bytes for each thread


def _slab_variants(shape: GroupNormShape) -> list[Variant]:
    sub, chunk = _slab_channels(shape), chunk_positions(shape)
    found = []
    for warps, tile in _SLAB_TILES.items():
        block = min(chunk, tile // sub)
        if block * sub >= _least_tile(warps):
            constants = {"SUB_C": sub, "BLOCK_P": block, "CHUNK_P": chunk}
            name = f"slab_p{block}c{chunk}w{warps}"
            found.append(Variant(name, constants, warps, 1, _SLAB_SHARED_BYTES))
    return found


def is_split(variant: Variant) -> bool:
    """Return whether a variant is two kernels."""
    return "CHUNK_P" in variant.constants


def is_slab(variant: Variant) -> bool:
    """Return whether a variant's programs take all groups at some positions."""
    return "SUB_C" in variant.constants
