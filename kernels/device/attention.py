"""Attention without the matrix of scores: each program keeps BLOCK_M queries and walks the keys.

Moved: q and the output once, k and v once a block of BLOCK_M queries, and those mostly from the L2
cache, because neighbouring programs share a head. The scores, S*T of them, never leave the
registers. A head dimension that is no power of two is cut into a power of two and a tail
(40 = 32 + 8, 80 = 64 + 16, 160 = 128 + 32), because padding 80 to 128 would add 60 % of work.

The sums of 64 queries of 512 numbers leave no registers for anything else. There PARTS programs
share the values' columns out, and each computes the scores for itself: 1.5 times the products for
two parts, but twice the programs, and products of 64 rows, which Hopper's tensor cores ask for.

Source: "FlashAttention" (Dao et al. 2022), algorithm 1; "Online normalizer calculation for softmax"
(Milakov and Gimelshein 2018), algorithm 3.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _attend(
    q_main,
    q_tail,
    acc_main,
    acc_tail,
    row_max,
    row_sum,
    k_head,
    v_head,
    k_stride,
    v_stride,
    rows,
    start,
    num_keys,
    SCALE_LOG2E: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TAIL_DOT: tl.constexpr,
    VALUE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """Let the queries see one block of keys; MASKED where some of them must not be seen."""
    keys = start + tl.arange(0, BLOCK_N)
    exists = keys < num_keys
    main = tl.arange(0, MAIN)
    k_columns = k_head + keys[None, :] * k_stride
    v_rows = v_head + keys[:, None] * v_stride

    if MASKED:
        k_main = tl.load(k_columns + main[:, None], mask=exists[None, :], other=0.0)
    else:
        k_main = tl.load(k_columns + main[:, None])
    scores = tl.dot(q_main, k_main, input_precision="ieee")  # [BLOCK_M,BLOCK_N]
    if TAIL > 0:
        # A product needs 16 terms at least, so a tail of 8 is filled up with zeros here.
        tail = MAIN + tl.arange(0, TAIL_DOT)
        within = (tail < MAIN + TAIL)[:, None]
        if MASKED:
            k_tail = tl.load(k_columns + tail[:, None], mask=within & exists[None, :], other=0.0)
        elif TAIL_DOT > TAIL:
            k_tail = tl.load(k_columns + tail[:, None], mask=within, other=0.0)
        else:
            k_tail = tl.load(k_columns + tail[:, None])
        scores = tl.dot(q_tail, k_tail, scores, input_precision="ieee")
    if MASKED:
        seen = exists[None, :]
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None])
        scores = tl.where(seen, scores, float("-inf"))

    # The maximum is kept scaled, so that every exponent below is taken relative to one number, and
    # is subtracted from the product before that is rounded.
    new_max = tl.maximum(row_max, tl.max(scores, 1) * SCALE_LOG2E)
    weights = tl.exp2(tl.fma(scores, SCALE_LOG2E, -new_max[:, None]))
    shrink = tl.exp2(row_max - new_max)
    row_sum = row_sum * shrink + tl.sum(weights, 1)

    columns = tl.arange(0, VALUE)
    if MASKED:
        v_main = tl.load(v_rows + columns[None, :], mask=exists[:, None], other=0.0)
    else:
        v_main = tl.load(v_rows + columns[None, :])
    weights = weights.to(v_main.dtype)
    acc_main = tl.dot(weights, v_main, acc_main * shrink[:, None], input_precision="ieee")
    if TAIL > 0:
        v_columns = MAIN + tl.arange(0, TAIL)
        if MASKED:
            v_tail = tl.load(v_rows + v_columns[None, :], mask=exists[:, None], other=0.0)
        else:
            v_tail = tl.load(v_rows + v_columns[None, :])
        acc_tail = tl.dot(weights, v_tail, acc_tail * shrink[:, None], input_precision="ieee")
    return acc_main, acc_tail, new_max, row_sum


@triton.jit
def attention_kernel(
    q,
    k,
    v,
    num_queries,
    num_keys,
    q_batch,
    q_head,
    q_row,
    k_batch,
    k_head,
    k_row,
    v_batch,
    v_head,
    v_row,
    out_batch,
    out_head,
    out_row,
    out,
    SCALE_LOG2E: tl.constexpr,
    CAUSAL: tl.constexpr,
    MAIN: tl.constexpr,
    TAIL: tl.constexpr,
    TAIL_DOT: tl.constexpr,
    UNIT: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attend with BLOCK_M queries; grid: (blocks of queries, heads * PARTS, batch).

    Strides are in UNIT elements, so that the compiler knows how well rows are aligned. The head
    dimension is MAIN + TAIL and contiguous. TAIL_DOT is TAIL, or 16 where that is less. A program
    computes MAIN / PARTS columns of the output; PARTS is 1 where there is a tail.
    """
    block = tl.program_id(0)
    head = (tl.program_id(1) // PARTS).to(tl.int64)
    first_column = tl.program_id(1) % PARTS * (MAIN // PARTS)
    image = tl.program_id(2).to(tl.int64)
    q += (image * q_batch + head * q_head) * UNIT
    k += (image * k_batch + head * k_head) * UNIT
    v += (image * v_batch + head * v_head) * UNIT + first_column
    out += (image * out_batch + head * out_head) * UNIT + first_column

    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    is_query = (rows < num_queries)[:, None]
    main = tl.arange(0, MAIN)
    q_rows = q + rows[:, None] * (q_row * UNIT)
    q_main = tl.load(q_rows + main[None, :], mask=is_query, other=0.0)
    acc_main = tl.zeros([BLOCK_M, MAIN // PARTS], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if TAIL > 0:
        tail = MAIN + tl.arange(0, TAIL_DOT)
        within = (tail < MAIN + TAIL)[None, :]
        q_tail = tl.load(q_rows + tail[None, :], mask=is_query & within, other=0.0)
        acc_tail = tl.zeros([BLOCK_M, TAIL], tl.float32)
    else:
        q_tail = q_main
        acc_tail = row_sum

    if CAUSAL:
        end = tl.minimum(num_keys, (block + 1) * BLOCK_M)
        whole = tl.minimum(num_keys, block * BLOCK_M) // BLOCK_N * BLOCK_N
    else:
        end = num_keys
        whole = num_keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        acc_main, acc_tail, row_max, row_sum = _attend(
            q_main, q_tail, acc_main, acc_tail, row_max, row_sum, k, v, k_row * UNIT, v_row * UNIT,
            rows, start, num_keys, SCALE_LOG2E, MAIN, TAIL, TAIL_DOT,
            MAIN // PARTS, BLOCK_N, False, CAUSAL,
        )  # fmt: skip
    for start in range(whole, end, BLOCK_N):
        acc_main, acc_tail, row_max, row_sum = _attend(
            q_main, q_tail, acc_main, acc_tail, row_max, row_sum, k, v, k_row * UNIT, v_row * UNIT,
            rows, start, num_keys, SCALE_LOG2E, MAIN, TAIL, TAIL_DOT,
            MAIN // PARTS, BLOCK_N, True, CAUSAL,
        )  # fmt: skip

    out_rows = out + rows[:, None] * (out_row * UNIT)
    inverse = (1.0 / row_sum)[:, None]
    own = tl.arange(0, MAIN // PARTS)
    tl.store(out_rows + own[None, :], (acc_main * inverse).to(out.dtype.element_ty), mask=is_query)
    if TAIL > 0:
        columns = MAIN + tl.arange(0, TAIL)
        value = (acc_tail * inverse).to(out.dtype.element_ty)
        tl.store(out_rows + columns[None, :], value, mask=is_query)
