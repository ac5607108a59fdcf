# SPDX-License-Identifier: Apache-2.0
"""The certified search: matrix units over all codes, one or two groups of codes for each row.

The proof in ``_triton.py`` names the quantities: scores, groups, the bound E.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvq.ops.nearest._triton_codebook import (
    ALL_ROWS,
    HALF,
    NORM,
    RESIDUAL,
    RESIDUAL_LOW,
    code_scale,
)
from fastvq.ops.nearest._triton_rows import (
    NOT_FINITE,
    SCALES,
    add_squares,
    load_centred,
    load_norms,
    load_rows,
    load_tau,
    row_numbers,
    row_offset,
    row_scales,
)
from fastvq.ops.nearest._triton_shares import FIELDS, LAST, settle, share_out, store_share

# matrix units align and truncate the terms they add: 1.5 units of float32 cover one term
_TRUNCATION = tl.constexpr(1.5 * 2.0**-23)
_UNIT = tl.constexpr(2.0**-24)
# covers the rounding of the norms that enter the bound
_INFLATION = tl.constexpr(1.01)
# what may underflow anywhere in a score of order 1
_UNDERFLOW = tl.constexpr(2.0**-100)


@triton.jit(do_not_specialize=["N", "FIRST", "ROOM", "PROGRAMS"])
def search_kernel(
    x_ptr, scales_ptr, limbs_ptr, half_ptr, centre_ptr, state_ptr, indices_ptr, rows_ptr,
    append_ptr, shares_ptr, N, FIRST, M, H, PADDED_K,
    stride_xb, stride_xm, stride_xh, stride_xd, ROOM, PROGRAMS,
    D: tl.constexpr, PADDED_D: tl.constexpr, CENTRED: tl.constexpr, SHIFTED: tl.constexpr,
    CERTIFY: tl.constexpr, LIST: tl.constexpr, APPEND: tl.constexpr, ENCODED: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr, LEAST: tl.constexpr,
):  # fmt: skip
    """The groups of the nearest code of all rows, or of those of a list; appends uncertain rows.

    ``indices`` takes one or two groups, which the rescoring turns into the nearest code.
    LIST and APPEND are the counters of the list read (ALL_ROWS for none) and of the one written.
    A listed row is searched finely: two limbs, where one is not exact already, and a fresh
    accumulator for every block of channels. RESIDENT keeps the operand of x in registers. ENCODED
    is x if it holds what ``encode_rows_kernel`` made of at most M rows from FIRST on. Where the
    rows are too few for PROGRAMS programs, each searches a share of the codes for
    ``merge_kernel``.
    """
    i_h = tl.program_id(1).to(tl.int64)
    x_ptr += i_h * stride_xh
    scales_ptr += i_h * M * SCALES
    centre_ptr += i_h * D
    state_ptr += i_h * 8
    half_ptr += i_h * PADDED_K
    LIMBS: tl.constexpr = 2 if CENTRED else 1
    limbs_ptr += i_h * LIMBS * PADDED_K * PADDED_D
    FINE: tl.constexpr = LIST != ALL_ROWS
    count = N
    if FINE:
        count = tl.load(state_ptr + LIST)
    elif ENCODED:
        count = tl.minimum(N - FIRST, M)
    span, shares = share_out(count, PADDED_K // BLOCK_K, PROGRAMS, BLOCK_M, LEAST)
    indices_ptr += i_h
    rows_ptr += i_h * N
    append_ptr += i_h * N
    shares_ptr += i_h * ROOM * FIELDS
    # no loop around the coarse pass: what it would keep in registers would spill on sm_100
    if FINE:
        for item in range(tl.program_id(0), tl.cdiv(count, BLOCK_M) * shares, tl.num_programs(0)):
            _search_tile(
                x_ptr, scales_ptr, limbs_ptr, half_ptr, centre_ptr, state_ptr, indices_ptr,
                rows_ptr, append_ptr, shares_ptr, item // shares, item % shares, count, span,
                shares, FIRST, M, H, PADDED_K, stride_xb, stride_xm, stride_xd,
                D, PADDED_D, CENTRED, SHIFTED, CERTIFY, LIST, APPEND, ENCODED, RESIDENT,
                BLOCK_M, BLOCK_K, BLOCK_D, SPLIT,
            )  # fmt: skip
    else:
        item = tl.program_id(0)
        _search_tile(
            x_ptr, scales_ptr, limbs_ptr, half_ptr, centre_ptr, state_ptr, indices_ptr,
            rows_ptr, append_ptr, shares_ptr, item // shares, item % shares, count, span,
            shares, FIRST, M, H, PADDED_K, stride_xb, stride_xm, stride_xd,
            D, PADDED_D, CENTRED, SHIFTED, CERTIFY, LIST, APPEND, ENCODED, RESIDENT,
            BLOCK_M, BLOCK_K, BLOCK_D, SPLIT,
        )  # fmt: skip


@triton.jit
def _search_tile(
    x_ptr, scales_ptr, limbs_ptr, half_ptr, centre_ptr, state_ptr, indices_ptr, rows_ptr,
    append_ptr, shares_ptr, i_tile, share, count, span, shares, FIRST,
    M, H, PADDED_K, stride_xb, stride_xm, stride_xd,
    D: tl.constexpr, PADDED_D: tl.constexpr, CENTRED: tl.constexpr, SHIFTED: tl.constexpr,
    CERTIFY: tl.constexpr, LIST: tl.constexpr, APPEND: tl.constexpr, ENCODED: tl.constexpr,
    RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of the rows against one share of the codes, ``span`` tiles of them."""
    FINE: tl.constexpr = LIST != ALL_ROWS
    n, live = row_numbers(i_tile, count, rows_ptr, LIST, BLOCK_M)
    row_ptr = x_ptr + row_offset(n, M, stride_xb, stride_xm)
    if ENCODED:
        tau = load_tau(scales_ptr, n, live)
        sigma = 1.0
        if CENTRED:
            sigma = code_scale(state_ptr)
    else:
        tau, sigma, finite = row_scales(
            row_ptr, centre_ptr, state_ptr, live, stride_xd, D, CENTRED, SHIFTED, BLOCK_D
        )
    ratio = tl.maximum(tau / sigma, _UNDERFLOW)
    first = share * span * BLOCK_K
    # a quotient, so that no address in the loop can be taken to overflow
    tiles = tl.minimum(span * BLOCK_K, PADDED_K - first) // BLOCK_K
    best, second, winner, norms = _scan(
        row_ptr, limbs_ptr + first.to(tl.int64) * PADDED_D, half_ptr + first, centre_ptr,
        live, tau, ratio, tiles, PADDED_K, stride_xd,
        D, PADDED_D, CENTRED, SHIFTED, FINE, ENCODED, RESIDENT, BLOCK_M, BLOCK_K, BLOCK_D, SPLIT,
    )  # fmt: skip
    group, other, lowest, runner_up, following = _two_best(
        best, second, winner, BLOCK_M, BLOCK_K, SPLIT
    )
    if ENCODED:
        # not before: they would be registers over all the codes
        square, rest, finite = load_norms(scales_ptr, n, live)
        norms = (square, rest, rest)
    group = tl.where(finite, first + group, NOT_FINITE)
    other += first
    limit = lowest
    if CERTIFY:
        bound = _score_bound(
            state_ptr, norms, ratio,
            CENTRED, SHIFTED, FINE, PADDED_D, BLOCK_D,
        )  # fmt: skip
        limit += 2 * bound
    n += FIRST
    if shares > 1:
        entry = share * count + i_tile * BLOCK_M + tl.arange(0, BLOCK_M)
        store_share(shares_ptr, entry, live, lowest, runner_up, following, limit, group, other)
    else:
        settle(
            indices_ptr, append_ptr, state_ptr + APPEND, n, H, live,
            group, other, runner_up, following, limit, CERTIFY,
        )  # fmt: skip


@triton.jit
def _scan(
    row_ptr, limbs_ptr, half_ptr, centre_ptr, live, tau, ratio, tiles, PADDED_K, stride_d,
    D: tl.constexpr, PADDED_D: tl.constexpr, CENTRED: tl.constexpr, SHIFTED: tl.constexpr,
    FINE: tl.constexpr, ENCODED: tl.constexpr, RESIDENT: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Best group, its tile and the second-best group per slot [BLOCK_M, SPLIT, 4]; norms of y.

    A slot is what one thread owns of a row of the accumulator: columns (i SPLIT 4 + slot) 2 + p of
    each of the tiles of codes. Its group is reduced within the thread, and no lane speaks to
    another.
    """
    LOW: tl.constexpr = limbs_ptr.dtype.element_ty
    zero = tl.zeros([BLOCK_M], tl.float32)
    norms = (zero, zero, zero)
    resident = ()
    if RESIDENT:
        for i in tl.static_range(PADDED_D // BLOCK_D):
            d = i * BLOCK_D + tl.arange(0, BLOCK_D)
            if ENCODED:
                y = tl.load(row_ptr[:, None] + d[None, :])
            else:
                y = load_centred(row_ptr, centre_ptr, live, d, stride_d, D, SHIFTED) * tau[:, None]
                norms = add_squares(norms, y, CENTRED, LOW)
            resident = resident + (y.to(LOW),)  # noqa: RUF005 (kernels know no starred tuple)
    elif not ENCODED:
        for start in range(0, PADDED_D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            y = load_centred(row_ptr, centre_ptr, live, d, stride_d, D, SHIFTED) * tau[:, None]
            norms = add_squares(norms, y, CENTRED, LOW)

    best = tl.full([BLOCK_M, SPLIT, 4], float("inf"), tl.float32)
    second = tl.full([BLOCK_M, SPLIT, 4], float("inf"), tl.float32)
    winner = tl.zeros([BLOCK_M, SPLIT, 4], tl.int32)
    column = tl.arange(0, BLOCK_K)
    for tile in range(tiles):
        code_ptr = limbs_ptr + column[None, :] * PADDED_D
        acc = tl.zeros([BLOCK_M, BLOCK_K], tl.float32)
        if RESIDENT:
            for i in tl.static_range(PADDED_D // BLOCK_D):
                d = i * BLOCK_D + tl.arange(0, BLOCK_D)
                acc = tl.dot(resident[i], tl.load(code_ptr + d[:, None]), acc)
        else:
            for start in range(0, PADDED_D, BLOCK_D):
                d = start + tl.arange(0, BLOCK_D)
                code = tl.load(code_ptr + d[:, None])
                # where nothing is left to do, straight to shared memory, ahead of the products
                if ENCODED:
                    # a place for every row of the tile, though not all are live
                    high = tl.load(row_ptr[:, None] + d[None, :])
                elif not CENTRED:
                    high = load_rows(row_ptr, live, d, stride_d, D).to(LOW)
                else:
                    y = load_centred(row_ptr, centre_ptr, live, d, stride_d, D, SHIFTED)
                    y *= tau[:, None]
                    high = y.to(LOW)
                if not FINE:
                    acc = tl.dot(high, code, acc)
                elif CENTRED:
                    # small products first: what the unit truncates follows what it has summed
                    low = (y - high.to(tl.float32)).to(LOW)
                    code_low = tl.load(code_ptr + PADDED_K.to(tl.int64) * PADDED_D + d[:, None])
                    part = tl.dot(high, code_low, tl.dot(low, code))
                    acc += tl.dot(high, code, part)
                else:
                    acc += tl.dot(high, code)
        score = ratio[:, None] * tl.load(half_ptr + column)[None, :] + acc
        score = tl.reshape(score, [BLOCK_M, BLOCK_K // SPLIT // 8, SPLIT, 4, 2])
        group = tl.min(tl.min(score, 4), 1)  # [BLOCK_M, SPLIT, 4]
        second = tl.minimum(second, tl.maximum(best, group))
        winner = tl.where(group < best, tile, winner)
        best = tl.minimum(best, group)
        limbs_ptr += BLOCK_K * PADDED_D
        half_ptr += BLOCK_K
    return best, second, winner, norms


@triton.jit
def _two_best(
    best, second, winner, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr
):
    """The best group of each row and the best one of the other slots, and what is behind them.

    Returns:
        Both groups by their first codes, both scores, and the least score of all further groups.
    """
    SLOTS: tl.constexpr = SPLIT * 4
    best = tl.reshape(best, [BLOCK_M, SLOTS])
    second = tl.reshape(second, [BLOCK_M, SLOTS])
    code = tl.reshape(winner, [BLOCK_M, SLOTS]) * BLOCK_K + tl.arange(0, SLOTS)[None, :] * 2
    lowest = tl.min(best, 1)
    # of equal groups the first, so that no order of the shares of a row can matter
    group = tl.min(tl.where(best > lowest[:, None], LAST, code), 1)
    mine = code == group[:, None]
    rest = tl.where(mine, float("inf"), best)
    runner_up = tl.min(rest, 1)
    other = tl.min(tl.where(mine | (rest > runner_up[:, None]), LAST, code), 1)
    following = tl.min(tl.where(mine | (code == other[:, None]), second, best), 1)
    return group, other, lowest, runner_up, following


@triton.jit
def _score_bound(
    state_ptr, norms, ratio,
    CENTRED: tl.constexpr, SHIFTED: tl.constexpr, FINE: tl.constexpr, PADDED_D: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """E of each row [R]: no score is off by more."""
    norm, rest, rest_low = tl.sqrt(norms[0]), tl.sqrt(norms[1]), tl.sqrt(norms[2])
    code_rest = tl.load(state_ptr + RESIDUAL).to(tl.float32, bitcast=True)
    code_norm = tl.load(state_ptr + NORM).to(tl.float32, bitcast=True) + code_rest
    half = tl.load(state_ptr + HALF).to(tl.float32, bitcast=True)
    product = (norm + rest) * code_norm
    chain: tl.constexpr = BLOCK_D if FINE else PADDED_D
    bound = (_TRUNCATION * chain + 2 * _UNIT) * product + 2 * _UNIT * ratio * half
    if SHIFTED:
        bound += _UNIT * product
    if FINE:
        code_rest_low = tl.load(state_ptr + RESIDUAL_LOW).to(tl.float32, bitcast=True)
        bound += _UNIT * (PADDED_D // BLOCK_D) * product
        if CENTRED:
            bound += norm * code_rest_low + rest_low * code_norm
            bound += (rest + rest_low) * (code_rest + code_rest_low)
    else:
        bound += norm * code_rest + rest * code_norm
    return bound * _INFLATION + _UNDERFLOW
