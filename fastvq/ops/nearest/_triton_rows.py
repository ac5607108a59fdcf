# SPDX-License-Identifier: Apache-2.0
"""Rows of x as the kernels of the search see them: numbers, addresses, scales, lists."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvq.ops.nearest._triton_codebook import (
    ALL_ROWS,
    LARGEST,
    RANGE,
    code_scale,
    inverse_power_of_two,
)

# what ``indices`` holds of a row before its index is known, besides the first code of a group
UNWRITTEN = tl.constexpr(0x7FFFFFFFFFFFFFFF)
NOT_FINITE = tl.constexpr(-1)
# how far below the codes a row is still scaled: smaller ones are centres to any precision
_SMALLEST_RATIO = tl.constexpr(2.0**-20)


@triton.jit
def row_numbers(tile, count, rows_ptr, LIST: tl.constexpr, BLOCK_M: tl.constexpr):
    """Rows of a tile of the list (of all rows where there is none), and which of them exist."""
    # 32-bit while N is, for the sake of the divisions that follow
    position = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    live = position < count
    if LIST != ALL_ROWS:
        position = tl.load(rows_ptr + position, mask=live, other=0)
    return position, live


@triton.jit
def row_offset(n, M, stride_b, stride_m):
    """Where row n starts: M rows lie a constant stride apart, then comes the next batch."""
    return (n // M).to(tl.int64) * stride_b + (n % M).to(tl.int64) * stride_m


@triton.jit
def load_rows(row_ptr, live, d, stride_d, D: tl.constexpr):
    """Channels ``d`` [C] of the live rows [R], zero elsewhere -> [R, C]."""
    mask = live[:, None] & (d < D)[None, :]
    return tl.load(row_ptr[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)


@triton.jit
def load_centred(row_ptr, centre_ptr, live, d, stride_d, D: tl.constexpr, SHIFTED: tl.constexpr):
    """The same in float32, less the centre if SHIFTED."""
    x = load_rows(row_ptr, live, d, stride_d, D).to(tl.float32)
    if SHIFTED:
        x -= tl.load(centre_ptr + d, mask=d < D, other=0.0)[None, :]
    return x


@triton.jit
def row_scales(
    row_ptr, centre_ptr, state_ptr, live, stride_d,
    D: tl.constexpr, CENTRED: tl.constexpr, SHIFTED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """tau of each row, sigma of the head, and which rows are finite."""
    largest = tl.zeros(live.shape, tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(row_ptr, live, d, stride_d, D).to(tl.float32)
        # a difference that overflows is the bound's business, infinity the mark of a spoilt row
        part = tl.abs(load_centred(row_ptr, centre_ptr, live, d, stride_d, D, SHIFTED))
        part = tl.where(tl.abs(x) < float("inf"), tl.minimum(part, LARGEST), float("inf"))
        largest = tl.maximum(largest, tl.max(part, 1))
    sigma = 1.0
    tau = tl.full(live.shape, 1.0, tl.float32)
    if CENTRED:
        sigma = code_scale(state_ptr)
        span = tl.load(state_ptr + RANGE).to(tl.float32, bitcast=True)
        tau = inverse_power_of_two(tl.maximum(largest, span * _SMALLEST_RATIO))
    return tau, sigma, largest < float("inf")


@triton.jit
def append(list_ptr, count_ptr, n, chosen):
    """Puts the chosen rows on a list; their order changes no result."""
    flags = chosen.to(tl.int32)
    base = tl.atomic_add(count_ptr, tl.sum(flags, 0))
    tl.store(list_ptr + base + tl.cumsum(flags, 0) - 1, n, mask=chosen)
