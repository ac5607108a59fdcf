# SPDX-License-Identifier: Apache-2.0
"""The last word: float64, by direct differences, over all codes.

Rows that no bound decides come here, and every row when an input is float64. The work of one row
is spread over many programs; they meet in an integer minimum on a key that holds the distance above
and the index below, so the outcome depends on no order. The key drops the last bits of the
distance, ceil(log2 K) of 52: a relative 2^-21 at the very most.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvq.ops.nearest._triton_codebook import ALL_ROWS
from fastvq.ops.nearest._triton_rows import UNWRITTEN, load_rows, row_numbers, row_offset
from fastvq.ops.nearest._triton_shares import share_out


@triton.jit
def _inverse_norm64(row_ptr, live, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """1 / |x| of each row, 0 for zero vectors."""
    square = tl.zeros(live.shape, tl.float64)
    for start in range(0, D, BLOCK_D):
        x = load_rows(row_ptr, live, start + tl.arange(0, BLOCK_D), stride_d, D).to(tl.float64)
        square += tl.sum(x * x, 1)
    return tl.where(square > 0, 1.0 / tl.sqrt(tl.where(square > 0, square, 1.0)), 0.0)


@triton.jit
def distance64(
    row_ptr, code_ptr, live, stride_xd, stride_cd,
    D: tl.constexpr, METRIC: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The distance of each row [R] to its own code, in float64."""
    total = tl.zeros(live.shape, tl.float64)
    x_inverse = tl.full(live.shape, 1.0, tl.float64)
    c_inverse = tl.full(live.shape, 1.0, tl.float64)
    if METRIC == "cosine":
        x_inverse = _inverse_norm64(row_ptr, live, stride_xd, D, BLOCK_D)
        c_inverse = _inverse_norm64(code_ptr, live, stride_cd, D, BLOCK_D)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(row_ptr, live, d, stride_xd, D).to(tl.float64) * x_inverse[:, None]
        c = load_rows(code_ptr, live, d, stride_cd, D).to(tl.float64) * c_inverse[:, None]
        if METRIC == "dot":
            total -= tl.sum(x * c, 1)
        else:
            total += tl.sum((x - c) * (x - c), 1)
    if METRIC == "cosine":
        total = tl.where((x_inverse == 0) | (c_inverse == 0), 1.0, total * 0.5)
    return total


@triton.jit
def _ordered(distance):
    """int64 keys in the order of the float64 distances."""
    bits = distance.to(tl.int64, bitcast=True)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


@triton.jit(do_not_specialize=["N"])
def refine_kernel(
    x_ptr, codes_ptr, half_ptr, weight_ptr, state_ptr, rows_ptr, indices_ptr,
    N, M, H, K, PADDED_K, INDEX_MASK,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ch, stride_ck, stride_cd,
    D: tl.constexpr, METRIC: tl.constexpr, LIST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Lowers ``indices`` to the least key of each row; idle programs take a share of the codes."""
    i_h = tl.program_id(1).to(tl.int64)
    x_ptr += i_h * stride_xh
    codes_ptr += i_h * stride_ch
    half_ptr += i_h * PADDED_K
    weight_ptr += i_h * PADDED_K
    count = N
    if LIST != ALL_ROWS:
        count = tl.load(state_ptr + i_h * 8 + LIST)
    # a step takes as long as a launch where it is all there is to do: no share is too small
    span, shares = share_out(count, tl.cdiv(K, BLOCK_K), tl.num_programs(0), BLOCK_M, 1)
    span *= BLOCK_K
    for item in range(tl.program_id(0), tl.cdiv(count, BLOCK_M) * shares, tl.num_programs(0)):
        n, live = row_numbers(item // shares, count, rows_ptr + i_h * N, LIST, BLOCK_M)
        row_ptr = x_ptr + row_offset(n, M, stride_xb, stride_xm)
        x_inverse = tl.full([BLOCK_M], 1.0, tl.float64)
        if METRIC == "cosine":
            x_inverse = _inverse_norm64(row_ptr, live, stride_xd, D, BLOCK_D)
        key = tl.full([BLOCK_M, BLOCK_K], UNWRITTEN, tl.int64)
        start_k = item % shares * span
        for first in range(start_k, tl.minimum(start_k + span, K), BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            half = tl.load(half_ptr + k, mask=k < K, other=float("inf"))
            usable = half < float("inf")
            weight = tl.full([BLOCK_K], 1.0, tl.float64)
            if METRIC == "cosine":
                weight = tl.load(weight_ptr + k, mask=k < K, other=0.0)
            distance = _distances(
                row_ptr, codes_ptr + k.to(tl.int64) * stride_ck, live, usable, x_inverse, weight,
                stride_xd, stride_cd, D, METRIC, BLOCK_M, BLOCK_K, BLOCK_D,
            )  # fmt: skip
            new = (_ordered(distance) & (-1 - INDEX_MASK)) | k.to(tl.int64)[None, :]
            key = tl.minimum(key, tl.where(usable[None, :], new, UNWRITTEN))
        tl.atomic_min(indices_ptr + n.to(tl.int64) * H + i_h, tl.min(key, 1), mask=live)


@triton.jit
def _distances(
    row_ptr, code_ptr, live, usable, x_inverse, weight, stride_xd, stride_cd,
    D: tl.constexpr, METRIC: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """float64 distances of rows [BLOCK_M] to codes [BLOCK_K]."""
    # summed over blocks first: lanes speak to each other once
    terms = tl.zeros([BLOCK_M, BLOCK_K, BLOCK_D], tl.float64)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(row_ptr, live, d, stride_xd, D).to(tl.float64) * x_inverse[:, None]
        c = load_rows(code_ptr, usable, d, stride_cd, D).to(tl.float64) * weight[:, None]
        if METRIC == "dot":
            terms += x[:, None, :] * c[None, :, :]
        else:
            difference = x[:, None, :] - c[None, :, :]
            terms += difference * difference
    total = tl.sum(terms, 2)
    if METRIC == "dot":
        # a sum never is -0, so that equal products keep equal keys
        total = 0.0 - total
    if METRIC == "cosine":
        total = tl.where((x_inverse == 0)[:, None] | (weight == 0)[None, :], 1.0, total * 0.5)
    return total


@triton.jit(do_not_specialize=["N"])
def finish_kernel(
    x_ptr, codes_ptr, state_ptr, rows_ptr, indices_ptr, distances_ptr,
    N, M, H, INDEX_MASK,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ch, stride_ck, stride_cd,
    D: tl.constexpr, METRIC: tl.constexpr, LIST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Turns keys into indices and writes the distances that belong to them."""
    i_h = tl.program_id(1).to(tl.int64)
    x_ptr += i_h * stride_xh
    codes_ptr += i_h * stride_ch
    count = N
    if LIST != ALL_ROWS:
        count = tl.load(state_ptr + i_h * 8 + LIST)
    for i_tile in range(tl.program_id(0), tl.cdiv(count, BLOCK_M), tl.num_programs(0)):
        n, live = row_numbers(i_tile, count, rows_ptr + i_h * N, LIST, BLOCK_M)
        row_ptr = x_ptr + row_offset(n, M, stride_xb, stride_xm)
        faults = tl.zeros([BLOCK_M], tl.int32)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            x = load_rows(row_ptr, live, d, stride_xd, D)
            faults += tl.sum((tl.abs(x.to(tl.float64)) < float("inf")).to(tl.int32) ^ 1, 1)
        n_out = n.to(tl.int64) * H + i_h
        key = tl.load(indices_ptr + n_out, mask=live, other=0)
        known = (faults == 0) & (key != UNWRITTEN)
        index = tl.where(known, key & INDEX_MASK, 0)
        distance = distance64(
            row_ptr, codes_ptr + index * stride_ck, live, stride_xd, stride_cd,
            D, METRIC, BLOCK_D,
        )  # fmt: skip
        tl.store(indices_ptr + n_out, index, mask=live)
        distance = tl.where(known, distance, float("nan"))
        tl.store(distances_ptr + n_out, distance.to(distances_ptr.dtype.element_ty), mask=live)
