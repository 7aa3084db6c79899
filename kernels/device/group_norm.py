"""Group normalisation and SiLU in one pass over memory, in both layouts, after optional additions.

One program handles one group of one image. It reads the group, reads it again, mostly from the L2
cache, and writes it: 2 or 3 times the map's bytes, where separate operations move 6 or more. Where
a whole group fits the registers it is read once. A few large groups would leave most of a GPU idle,
so for them two kernels share the work out: partial statistics of chunks, then the result.

Groups of 10 or 30 channels are filled up to a power of two with masked lanes: those cost no bytes.
Each lane runs Welford's recurrence and the lanes are merged once, so that no square of a large mean
is ever subtracted from another.

Source: "Group Normalization" (Wu and He 2018), equations 1 to 3; "Note on a Method for Calculating
Corrected Sums of Squares" (Welford 1962); "Updating Formulae and a Pairwise Algorithm for Computing
Sample Variances" (Chan, Golub and LeVeque 1979).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load_sum(x, residual, base, offsets, mask, per_channel):
    """Return x + residual + per_channel in fp32, without the parts that are None."""
    value = tl.load(x + base + offsets, mask=mask, other=0.0).to(tl.float32)
    if residual is not None:
        value += tl.load(residual + base + offsets, mask=mask, other=0.0).to(tl.float32)
    if per_channel is not None:
        value += per_channel
    return value


@triton.jit
def _embedding_of(embedding, image, channels, exists, NUM_CHANNELS: tl.constexpr):
    """Return the image's time embedding of a group's channels as a column."""
    at = embedding + image * NUM_CHANNELS + channels
    return tl.load(at, mask=exists, other=0.0).to(tl.float32)[:, None]


@triton.jit
def _lane_moments(
    x, residual, base, per_channel, exists, lanes, channel_stride, position_stride, begin, end,
    PAD_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Return how many elements the positions from begin to end have, their mean, and the sum of
    squares about it."""
    mean = tl.zeros([PAD_C, BLOCK_P], tl.float32)
    squares = tl.zeros([PAD_C, BLOCK_P], tl.float32)
    seen = 0.0
    for start in range(begin, end, BLOCK_P):
        positions = start + tl.arange(0, BLOCK_P)
        mask = exists[:, None] & (positions < end)[None, :]
        offsets = lanes[:, None] * channel_stride + positions[None, :] * position_stride
        value = _load_sum(x, residual, base, offsets, mask, per_channel)
        seen += 1.0
        delta = tl.where(mask, value - mean, 0.0)
        mean += delta / seen
        squares += delta * tl.where(mask, value - mean, 0.0)
    # A lane past the end of the last, incomplete block saw one value less than the others.
    positions = begin + tl.arange(0, BLOCK_P)
    per_lane = ((end - positions + BLOCK_P - 1) // BLOCK_P).to(tl.float32)
    counts = tl.where(exists[:, None] & (positions < end)[None, :], per_lane[None, :], 0.0)
    total = tl.sum(counts)
    group_mean = tl.sum(counts * mean) / total
    deviation = mean - group_mean
    return total, group_mean, tl.sum(squares + counts * deviation * deviation)


@triton.jit
def _write_normed(
    value, out, total_out, base, offsets, mask, mean, inverse, scale, shift, SILU: tl.constexpr
):
    """Write the sum, where it is asked for, and its normalised, activated value."""
    if total_out is not None:
        tl.store(total_out + base + offsets, value.to(total_out.dtype.element_ty), mask=mask)
    y = (value - mean) * inverse * scale + shift
    if SILU:
        # With the exponential of a negative number only, nothing overflows.
        decay = tl.exp(-tl.abs(y))
        y = y * tl.where(y >= 0, 1.0, decay) / (1.0 + decay)
    tl.store(out + base + offsets, y.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _write_positions(
    x, residual, out, total_out, base, per_channel, exists, lanes, channel_stride,
    position_stride, begin, end, mean, inverse, scale, shift,
    SILU: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Read the positions from begin to end again and write what becomes of them."""
    for start in range(begin, end, BLOCK_P):
        positions = start + tl.arange(0, BLOCK_P)
        mask = exists[:, None] & (positions < end)[None, :]
        offsets = lanes[:, None] * channel_stride + positions[None, :] * position_stride
        value = _load_sum(x, residual, base, offsets, mask, per_channel)
        _write_normed(
            value, out, total_out, base, offsets, mask, mean, inverse, scale, shift, SILU
        )  # fmt: skip


@triton.jit
def _group_of(group, image, num_positions, NHWC: tl.constexpr, GROUP_C: tl.constexpr,
              NUM_CHANNELS: tl.constexpr):  # fmt: skip
    """Return where a group starts and how far apart its channels and positions are."""
    if NHWC:
        base = image * num_positions * NUM_CHANNELS + group * GROUP_C
        channel_stride = 1
        position_stride = NUM_CHANNELS
    else:
        base = (image * NUM_CHANNELS + group * GROUP_C) * num_positions
        channel_stride = num_positions
        position_stride = 1
    return base, channel_stride, position_stride


@triton.jit
def group_norm_kernel(
    x,
    weight,
    bias,
    residual,
    embedding,
    num_positions,
    out,
    total_out,
    EPS: tl.constexpr,
    SILU: tl.constexpr,
    NHWC: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_C: tl.constexpr,
    PAD_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Normalise one group; grid: (groups, images).

    x, residual, out, total_out: [B,C,P], or [B,P,C] where NHWC; embedding: [B,C]. residual,
    embedding and total_out may be None. RESIDENT: BLOCK_P covers all positions.
    """
    group = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    NUM_CHANNELS: tl.constexpr = NUM_GROUPS * GROUP_C
    base, channel_stride, position_stride = _group_of(
        group, image, num_positions, NHWC, GROUP_C, NUM_CHANNELS
    )
    lanes = tl.arange(0, PAD_C)
    exists = lanes < GROUP_C
    channels = group * GROUP_C + lanes
    per_channel = None
    if embedding is not None:
        per_channel = _embedding_of(embedding, image, channels, exists, NUM_CHANNELS)
    scale = tl.load(weight + channels, mask=exists, other=0.0).to(tl.float32)[:, None]
    shift = tl.load(bias + channels, mask=exists, other=0.0).to(tl.float32)[:, None]

    if RESIDENT:
        positions = tl.arange(0, BLOCK_P)
        mask = exists[:, None] & (positions < num_positions)[None, :]
        offsets = lanes[:, None] * channel_stride + positions[None, :] * position_stride
        value = _load_sum(x, residual, base, offsets, mask, per_channel)
        count = (num_positions * GROUP_C).to(tl.float32)
        mean = tl.sum(tl.where(mask, value, 0.0)) / count
        deviation = tl.where(mask, value - mean, 0.0)
        inverse = tl.rsqrt(tl.sum(deviation * deviation) / count + EPS)
        _write_normed(
            value, out, total_out, base, offsets, mask, mean, inverse, scale, shift, SILU
        )  # fmt: skip
    else:
        total, mean, squares = _lane_moments(
            x, residual, base, per_channel, exists, lanes, channel_stride, position_stride,
            0, num_positions, PAD_C, BLOCK_P,
        )  # fmt: skip
        inverse = tl.rsqrt(squares / total + EPS)
        _write_positions(
            x, residual, out, total_out, base, per_channel, exists, lanes, channel_stride,
            position_stride, 0, num_positions, mean, inverse, scale, shift, SILU, BLOCK_P,
        )  # fmt: skip


@triton.jit
def group_norm_partial_kernel(
    x,
    residual,
    embedding,
    num_positions,
    partials,
    NHWC: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_C: tl.constexpr,
    PAD_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNK_P: tl.constexpr,
):
    """Write mean and sum of squares of a chunk of positions; grid: (chunks, groups, images).

    partials: [B,2,chunks,NUM_GROUPS] fp32. CHUNK_P is a multiple of BLOCK_P.
    """
    chunk = tl.program_id(0)
    group = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    NUM_CHANNELS: tl.constexpr = NUM_GROUPS * GROUP_C
    base, channel_stride, position_stride = _group_of(
        group, image, num_positions, NHWC, GROUP_C, NUM_CHANNELS
    )
    lanes = tl.arange(0, PAD_C)
    exists = lanes < GROUP_C
    channels = group * GROUP_C + lanes
    per_channel = None
    if embedding is not None:
        per_channel = _embedding_of(embedding, image, channels, exists, NUM_CHANNELS)
    begin = chunk * CHUNK_P
    end = tl.minimum(begin + CHUNK_P, num_positions)
    _, mean, squares = _lane_moments(
        x, residual, base, per_channel, exists, lanes, channel_stride, position_stride,
        begin, end, PAD_C, BLOCK_P,
    )  # fmt: skip
    at = partials + (image * 2 * tl.num_programs(0) + chunk) * NUM_GROUPS + group
    tl.store(at, mean)
    tl.store(at + tl.num_programs(0) * NUM_GROUPS, squares)


@triton.jit
def group_norm_apply_kernel(
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
    NHWC: tl.constexpr,
    NUM_GROUPS: tl.constexpr,
    GROUP_C: tl.constexpr,
    PAD_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    CHUNK_P: tl.constexpr,
    PAD_CHUNKS: tl.constexpr,
):
    """Normalise a chunk of positions with all chunks' statistics; grid: (chunks, groups, images).

    PAD_CHUNKS is a power of two of no less than the number of chunks.
    """
    chunk = tl.program_id(0)
    group = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    NUM_CHANNELS: tl.constexpr = NUM_GROUPS * GROUP_C
    base, channel_stride, position_stride = _group_of(
        group, image, num_positions, NHWC, GROUP_C, NUM_CHANNELS
    )
    chunks = tl.arange(0, PAD_CHUNKS)
    is_chunk = chunks < tl.num_programs(0)
    at = partials + (image * 2 * tl.num_programs(0) + chunks) * NUM_GROUPS + group
    means = tl.load(at, mask=is_chunk, other=0.0)
    squares = tl.load(at + tl.num_programs(0) * NUM_GROUPS, mask=is_chunk, other=0.0)
    positions = tl.minimum(num_positions - chunks * CHUNK_P, CHUNK_P)
    counts = tl.where(is_chunk, (positions * GROUP_C).to(tl.float32), 0.0)
    total = (num_positions * GROUP_C).to(tl.float32)
    mean = tl.sum(counts * means) / total
    deviation = means - mean
    inverse = tl.rsqrt(tl.sum(squares + counts * deviation * deviation) / total + EPS)

    lanes = tl.arange(0, PAD_C)
    exists = lanes < GROUP_C
    channels = group * GROUP_C + lanes
    per_channel = None
    if embedding is not None:
        per_channel = _embedding_of(embedding, image, channels, exists, NUM_CHANNELS)
    scale = tl.load(weight + channels, mask=exists, other=0.0).to(tl.float32)[:, None]
    shift = tl.load(bias + channels, mask=exists, other=0.0).to(tl.float32)[:, None]
    begin = chunk * CHUNK_P
    end = tl.minimum(begin + CHUNK_P, num_positions)
    _write_positions(
        x, residual, out, total_out, base, per_channel, exists, lanes, channel_stride,
        position_stride, begin, end, mean, inverse, scale, shift, SILU, BLOCK_P,
    )  # fmt: skip
