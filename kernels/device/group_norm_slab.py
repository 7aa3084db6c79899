"""Group normalisation of NHWC maps: each program takes some positions with all their channels.

The channels of a group are few bytes at each position, 20 of 640 in the first level of SD 1.5, so a
program of one group would read half a dozen times as many sectors as bytes it uses. Here a program
reads whole rows, in tiles of SUB_C channels that are 128 bytes or more: every load is 16 bytes wide
and every sector is used whole. Moved: the map twice, the second time mostly from the L2 cache, and
its result once; the statistics between the two kernels are a few per cent of that.

Each lane runs Welford's recurrence over its positions, lanes are merged to channels and channels to
groups, so that no square of a large mean is ever subtracted from another.

Source: as `group_norm`.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from sdengine.kernels.device.group_norm import _load_sum, _write_normed


@triton.jit
def _mask(is_position, is_channel, ALL_CHANNELS: tl.constexpr):
    """Return the mask of a tile [positions,channels]."""
    mask = is_position[:, None]
    if not ALL_CHANNELS:
        mask = mask & is_channel[None, :]
    return mask


@triton.jit
def _merge(count, mean, squares, other_count, other_mean, other_squares):
    """Return the moments of two sets of numbers together; either may be empty."""
    total = count + other_count
    share = other_count / tl.maximum(total, 1.0)
    delta = other_mean - mean
    return total, mean + delta * share, squares + other_squares + delta * delta * count * share


@triton.jit
def _channel_moments(
    x, residual, base, embedded, channels, exists, begin, end,
    NUM_CHANNELS: tl.constexpr, SUB_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return each channel's mean and sum of squares about it at the positions from begin to end."""
    mean = tl.zeros([BLOCK_P, SUB_C], tl.float32)
    squares = tl.zeros([BLOCK_P, SUB_C], tl.float32)
    seen = 0.0
    for start in range(begin, end, BLOCK_P):
        positions = start + tl.arange(0, BLOCK_P)
        mask = _mask(positions < end, exists, NUM_CHANNELS % SUB_C == 0)
        offsets = positions[:, None] * NUM_CHANNELS + channels[None, :]
        value = _load_sum(x, residual, base, offsets, mask, embedded)
        seen += 1.0
        delta = tl.where(mask, value - mean, 0.0)
        mean += delta * (1.0 / seen)
        squares += delta * tl.where(mask, value - mean, 0.0)
    # A lane past the end of the last, incomplete block saw one value less than the others.
    positions = begin + tl.arange(0, BLOCK_P)
    counts = tl.maximum((end - positions + BLOCK_P - 1) // BLOCK_P, 0).to(tl.float32)[:, None]
    channel_mean = tl.sum(counts * mean, 0) / (end - begin).to(tl.float32)
    deviation = mean - channel_mean[None, :]
    return channel_mean, tl.sum(squares + counts * deviation * deviation, 0)


@triton.jit
def _group_moments(
    means, squares, count, channels, first_group,
    NUM_CHANNELS: tl.constexpr, GROUP_C: tl.constexpr, PAD_LOCAL: tl.constexpr,
):  # fmt: skip
    """Return the moments of the groups from the first one on, of those channels that are here.

    count: of each channel's numbers.
    """
    groups = first_group + tl.arange(0, PAD_LOCAL)
    belongs = (channels // GROUP_C)[None, :] == groups[:, None]
    belongs = belongs & (channels < NUM_CHANNELS)[None, :]
    here = tl.sum(belongs.to(tl.float32), 1)
    mean = tl.sum(tl.where(belongs, means[None, :], 0.0), 1) / tl.maximum(here, 1.0)
    deviation = means[None, :] - mean[:, None]
    about = squares[None, :] + count * deviation * deviation
    return here * count, mean, tl.sum(tl.where(belongs, about, 0.0), 1)


@triton.jit
def _embedded(embedding, image, channels, exists, NUM_CHANNELS: tl.constexpr):
    """Return the image's time embedding of some channels as a row."""
    at = embedding + image * NUM_CHANNELS + channels
    return tl.load(at, mask=exists, other=0.0).to(tl.float32)[None, :]


@triton.jit
def group_norm_slab_partial_kernel(
    x,
    residual,
    embedding,
    num_positions,
    partials,
    NUM_GROUPS: tl.constexpr,
    GROUP_C: tl.constexpr,
    PAD_GROUPS: tl.constexpr,
    PAD_LOCAL: tl.constexpr,
    SUB_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNK_P: tl.constexpr,
):
    """Write all groups' mean and sum of squares of a chunk; grid: (chunks, images).

    x, residual: [B,P,C]; embedding: [B,C]; partials: [B,2,chunks,NUM_GROUPS] fp32. PAD_LOCAL is a
    power of two of no less than the groups that SUB_C channels touch.
    """
    chunk = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    NUM_CHANNELS: tl.constexpr = NUM_GROUPS * GROUP_C
    base = image * num_positions * NUM_CHANNELS
    begin = chunk * CHUNK_P
    end = tl.minimum(begin + CHUNK_P, num_positions)
    positions = (end - begin).to(tl.float32)
    groups = tl.arange(0, PAD_GROUPS)
    local = tl.arange(0, PAD_LOCAL)
    count = tl.zeros([PAD_GROUPS], tl.float32)
    mean = tl.zeros([PAD_GROUPS], tl.float32)
    squares = tl.zeros([PAD_GROUPS], tl.float32)
    for first in range(0, NUM_CHANNELS, SUB_C):
        channels = first + tl.arange(0, SUB_C)
        exists = channels < NUM_CHANNELS
        embedded = None
        if embedding is not None:
            embedded = _embedded(embedding, image, channels, exists, NUM_CHANNELS)
        channel_mean, channel_squares = _channel_moments(
            x, residual, base, embedded, channels, exists, begin, end, NUM_CHANNELS, SUB_C, BLOCK_P
        )
        first_group = first // GROUP_C
        local_count, local_mean, local_squares = _group_moments(
            channel_mean, channel_squares, positions, channels, first_group,
            NUM_CHANNELS, GROUP_C, PAD_LOCAL,
        )  # fmt: skip
        place = groups[None, :] == (first_group + local)[:, None]
        count, mean, squares = _merge(
            count, mean, squares,
            tl.sum(tl.where(place, local_count[:, None], 0.0), 0),
            tl.sum(tl.where(place, local_mean[:, None], 0.0), 0),
            tl.sum(tl.where(place, local_squares[:, None], 0.0), 0),
        )  # fmt: skip
    chunks = tl.num_programs(0)
    at = partials + (image * 2 * chunks + chunk) * NUM_GROUPS + groups
    tl.store(at, mean, mask=groups < NUM_GROUPS)
    tl.store(at + chunks * NUM_GROUPS, squares, mask=groups < NUM_GROUPS)


@triton.jit
def group_norm_slab_apply_kernel(
    x,
    weight,
    bias,
    residual,
    embedding,
    partials,
    num_positions,
    out,
    total_out,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_C: tl.constexpr,
    PAD_GROUPS: tl.constexpr,
    PAD_LOCAL: tl.constexpr,
    SUB_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNK_P: tl.constexpr,
    PAD_CHUNKS: tl.constexpr,
):
    """Normalise a chunk of positions with all chunks' statistics; grid: (chunks, images).

    PAD_CHUNKS is a power of two of no less than the number of chunks.
    """
    chunk = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    NUM_CHANNELS: tl.constexpr = NUM_GROUPS * GROUP_C
    num_chunks = tl.num_programs(0)
    groups = tl.arange(0, PAD_GROUPS)
    chunks = tl.arange(0, PAD_CHUNKS)
    is_part = (chunks < num_chunks)[:, None] & (groups < NUM_GROUPS)[None, :]
    at = partials + (image * 2 * num_chunks + chunks[:, None]) * NUM_GROUPS + groups[None, :]
    means = tl.load(at, mask=is_part, other=0.0)
    squares = tl.load(at + num_chunks * NUM_GROUPS, mask=is_part, other=0.0)
    sizes = tl.maximum(tl.minimum(num_positions - chunks * CHUNK_P, CHUNK_P), 0) * GROUP_C
    counts = sizes.to(tl.float32)[:, None]
    total = (num_positions * GROUP_C).to(tl.float32)
    mean = tl.sum(counts * means, 0) / total
    deviation = means - mean[None, :]
    inverse = tl.rsqrt(tl.sum(squares + counts * deviation * deviation, 0) / total + EPS)

    base = image * num_positions * NUM_CHANNELS
    begin = chunk * CHUNK_P
    end = tl.minimum(begin + CHUNK_P, num_positions)
    for first in range(0, NUM_CHANNELS, SUB_C):
        channels = first + tl.arange(0, SUB_C)
        exists = channels < NUM_CHANNELS
        embedded = None
        if embedding is not None:
            embedded = _embedded(embedding, image, channels, exists, NUM_CHANNELS)
        group = tl.minimum(channels // GROUP_C, NUM_GROUPS - 1)
        own_mean = tl.gather(mean, group, 0)[None, :]
        own_inverse = tl.gather(inverse, group, 0)[None, :]
        scale = tl.load(weight + channels, mask=exists, other=0.0).to(tl.float32)[None, :]
        shift = tl.load(bias + channels, mask=exists, other=0.0).to(tl.float32)[None, :]
        for start in range(begin, end, BLOCK_P):
            positions = start + tl.arange(0, BLOCK_P)
            mask = _mask(positions < end, exists, NUM_CHANNELS % SUB_C == 0)
            offsets = positions[:, None] * NUM_CHANNELS + channels[None, :]
            value = _load_sum(x, residual, base, offsets, mask, embedded)
            _write_normed(
                value, out, total_out, base, offsets, mask, own_mean, own_inverse, scale, shift,
                SILU,
            )  # fmt: skip
