"""Triton kernels of the fused matching.  Importing this module needs Triton.

All of them walk over tiles of similarities of some queries (rows) and references (columns, sorted by label set),
one after the other in registers: no similarity is ever written to memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

THRESHOLDS = 8
"""Thresholds per query that one sweep of :func:`count_above` counts against: two words of four bytes."""

MAX_SPAN = 2**15 - 1
"""References that one program of :func:`count_above` can count."""


@triton.jit
def _load(features, rows, row_used, first, D, BLOCK_D: tl.constexpr):
    """``(len(rows), BLOCK_D)`` features from ``first`` on; 0 beyond D and in unused rows."""
    d = first + tl.arange(0, BLOCK_D)
    return tl.load(features + rows[:, None] * D + d[None, :], mask=row_used[:, None] & (d < D)[None, :], other=0.0)


@triton.jit
def _tile(
    queries,
    references,
    query_scale,
    reference_scale,
    query_eps,
    reference_eps,
    rows,
    row_used,
    u,
    start,
    stop,
    D,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALL_OF_D: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
    EPS_MATTERS: tl.constexpr,
):
    """Similarities of the queries ``rows`` to the references from ``start`` on; 0 beyond ``stop`` and in unused rows.

    ``u`` are the first features of the queries, with ALL_OF_D all of them: loaded once for all tiles.
    """
    columns = (start + tl.arange(0, BLOCK_N)).to(tl.int64)
    column_used = columns < stop
    r = _load(references, columns, column_used, 0, D, BLOCK_D)
    similarity = tl.dot(u, tl.trans(r), input_precision=PRECISION)
    if not ALL_OF_D:
        for first in range(BLOCK_D, D, BLOCK_D):
            more = _load(queries, rows, row_used, first, D, BLOCK_D)
            r = _load(references, columns, column_used, first, D, BLOCK_D)
            # As an accumulator of tl.dot, which rounds towards zero in half precision, the sum would drift; so would
            # that of a +, which compilers make one.
            similarity = tl.fma(tl.dot(more, tl.trans(r), input_precision=PRECISION), 1.0, similarity)
    if SCALED:
        u_scale = tl.load(query_scale + rows, mask=row_used, other=0.0)
        r_scale = tl.load(reference_scale + columns, mask=column_used, other=0.0)
        similarity = similarity * u_scale[:, None] * r_scale[None, :]
    if EPS_MATTERS:
        u_eps = tl.load(query_eps + rows, mask=row_used, other=0.0)
        r_eps = tl.load(reference_eps + columns, mask=column_used, other=0.0)
        divisor = tl.minimum(1 + u_eps[:, None] * r_eps[None, :], 1e30)  # inf would give NaN below
        quotient = similarity / divisor  # off by two units in the last place, as GPUs divide
        similarity = quotient + tl.fma(-quotient, divisor, similarity) / divisor
    return similarity


@triton.jit
def _keep_maximum(best, rows, row_used, label_set, S, highest):
    """Raise ``best[rows, label_set]`` to ``highest``.  Positive floats are in the order of their bits."""
    tl.atomic_max(
        best + rows * S + label_set, highest.to(tl.int32, bitcast=True), mask=row_used & (highest > 0), sem="relaxed"
    )


@triton.jit(do_not_specialize=["M", "N", "SPAN", "S"])
def set_maxima(
    queries,
    references,
    query_scale,
    reference_scale,
    query_eps,
    reference_eps,
    sets,
    best,
    M,
    N,
    D,
    SPAN,
    S,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALL_OF_D: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
    EPS_MATTERS: tl.constexpr,
):
    """``best[m, s]``, float32 as int32 bits and 0 at first, becomes the highest positive similarity to set s.

    One program takes BLOCK_M queries and SPAN references, and writes a maximum when the label set ends.
    """
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_used = rows < M
    begin = tl.program_id(1) * SPAN
    end = tl.minimum(begin + SPAN, N)
    current = tl.load(sets + begin)
    running = tl.zeros((BLOCK_M,), dtype=tl.float32)
    u = _load(queries, rows, row_used, 0, D, BLOCK_D)
    for start in range(begin, end, BLOCK_N):
        similarity = _tile(
            queries, references, query_scale, reference_scale, query_eps, reference_eps, rows, row_used, u, start,
            end, D, BLOCK_M, BLOCK_N, BLOCK_D, ALL_OF_D, PRECISION, SCALED, EPS_MATTERS,
        )  # fmt: skip
        last = tl.load(sets + tl.minimum(start + BLOCK_N, end) - 1)
        if last == current:
            running = tl.maximum(running, tl.max(similarity, axis=1))
        else:
            columns = start + tl.arange(0, BLOCK_N)
            tile_sets = tl.load(sets + columns, mask=columns < end, other=-1)
            for label_set in range(current, last):
                of_set = tl.where((tile_sets == label_set)[None, :], similarity, 0.0)
                _keep_maximum(best, rows, row_used, label_set, S, tl.maximum(running, tl.max(of_set, axis=1)))
                running = tl.zeros((BLOCK_M,), dtype=tl.float32)
            running = tl.max(tl.where((tile_sets == last)[None, :], similarity, 0.0), axis=1)
            current = last
    _keep_maximum(best, rows, row_used, current, S, running)


@triton.jit
def _threshold(thresholds, some, row_used, T: tl.constexpr):
    return tl.load(thresholds + some * 8 + T, mask=row_used, other=float("inf"))[:, None]


@triton.jit
def _four_counts(similarity, t0, t1, t2, t3):
    """Row counts above four thresholds, a byte each: one sum instead of four."""
    packed = tl.where(similarity > t0, 1, 0) + tl.where(similarity > t1, 1 << 8, 0)
    packed += tl.where(similarity > t2, 1 << 16, 0) + tl.where(similarity > t3, 1 << 24, 0)
    return tl.sum(packed, axis=1)


@triton.jit
def _add_two_counts(counts, some, row_used, packed, T: tl.constexpr):
    """Add two counts of two bytes each to ``counts[some, T]`` and ``counts[some, T + 2]``."""
    tl.atomic_add(counts + some * 8 + T, packed & 0xFFFF, mask=row_used, sem="relaxed")
    tl.atomic_add(counts + some * 8 + T + 2, packed >> 16, mask=row_used, sem="relaxed")


@triton.jit(do_not_specialize=["M", "N", "SPAN"])
def count_above(
    queries,
    references,
    query_scale,
    reference_scale,
    query_eps,
    reference_eps,
    chosen,
    thresholds,
    counts,
    M,
    N,
    D,
    SPAN,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALL_OF_D: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
    EPS_MATTERS: tl.constexpr,
):
    """``counts[i, t]`` grows by the number of references above ``thresholds[i, t]`` for query ``chosen[i]``.

    Thresholds are positive.  SPAN is at most MAX_SPAN and BLOCK_N at most 128: counts of a program fit into two bytes,
    those of a tile into one.
    """
    some = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_used = some < M
    rows = tl.load(chosen + some, mask=row_used, other=0)
    begin = tl.program_id(1) * SPAN
    end = tl.minimum(begin + SPAN, N)
    t0 = _threshold(thresholds, some, row_used, 0)
    t1 = _threshold(thresholds, some, row_used, 1)
    t2 = _threshold(thresholds, some, row_used, 2)
    t3 = _threshold(thresholds, some, row_used, 3)
    t4 = _threshold(thresholds, some, row_used, 4)
    t5 = _threshold(thresholds, some, row_used, 5)
    t6 = _threshold(thresholds, some, row_used, 6)
    t7 = _threshold(thresholds, some, row_used, 7)
    even_0 = tl.zeros((BLOCK_M,), dtype=tl.int32)
    odd_0 = tl.zeros((BLOCK_M,), dtype=tl.int32)
    even_4 = tl.zeros((BLOCK_M,), dtype=tl.int32)
    odd_4 = tl.zeros((BLOCK_M,), dtype=tl.int32)
    u = _load(queries, rows, row_used, 0, D, BLOCK_D)
    for start in range(begin, end, BLOCK_N):
        similarity = _tile(
            queries, references, query_scale, reference_scale, query_eps, reference_eps, rows, row_used, u, start,
            end, D, BLOCK_M, BLOCK_N, BLOCK_D, ALL_OF_D, PRECISION, SCALED, EPS_MATTERS,
        )  # fmt: skip
        four = _four_counts(similarity, t0, t1, t2, t3)
        even_0 += four & 0x00FF00FF
        odd_0 += (four >> 8) & 0x00FF00FF
        four = _four_counts(similarity, t4, t5, t6, t7)
        even_4 += four & 0x00FF00FF
        odd_4 += (four >> 8) & 0x00FF00FF
    _add_two_counts(counts, some, row_used, even_0, 0)
    _add_two_counts(counts, some, row_used, odd_0, 1)
    _add_two_counts(counts, some, row_used, even_4, 4)
    _add_two_counts(counts, some, row_used, odd_4, 5)


@triton.jit(do_not_specialize=["M", "N", "SPAN"])
def lowest_key(
    queries,
    references,
    query_scale,
    reference_scale,
    query_eps,
    reference_eps,
    keys,
    chosen,
    thresholds,
    lowest,
    M,
    N,
    D,
    SPAN,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ALL_OF_D: tl.constexpr,
    PRECISION: tl.constexpr,
    SCALED: tl.constexpr,
    EPS_MATTERS: tl.constexpr,
):
    """``lowest[i]`` falls to the smallest key of the references not below ``thresholds[i]`` for query ``chosen[i]``."""
    some = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_used = some < M
    rows = tl.load(chosen + some, mask=row_used, other=0)
    begin = tl.program_id(1) * SPAN
    end = tl.minimum(begin + SPAN, N)
    threshold = tl.load(thresholds + some, mask=row_used, other=float("inf"))
    none = tl.full((BLOCK_M,), 9223372036854775807, dtype=tl.int64)
    smallest = none
    u = _load(queries, rows, row_used, 0, D, BLOCK_D)
    for start in range(begin, end, BLOCK_N):
        similarity = _tile(
            queries, references, query_scale, reference_scale, query_eps, reference_eps, rows, row_used, u, start,
            end, D, BLOCK_M, BLOCK_N, BLOCK_D, ALL_OF_D, PRECISION, SCALED, EPS_MATTERS,
        )  # fmt: skip
        columns = start + tl.arange(0, BLOCK_N)
        column_used = columns < end
        key = tl.load(keys + columns, mask=column_used, other=9223372036854775807)
        hit = (similarity >= threshold[:, None]) & column_used[None, :]
        smallest = tl.minimum(smallest, tl.min(tl.where(hit, key[None, :], none[:, None]), axis=1))
    tl.atomic_min(lowest + some, smallest, mask=row_used, sem="relaxed")
