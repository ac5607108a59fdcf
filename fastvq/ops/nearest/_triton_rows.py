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

# what ``indices`` holds of a row before its index is known, besides groups by their first codes
UNWRITTEN = tl.constexpr(0x7FFFFFFFFFFFFFFF)
NOT_FINITE = tl.constexpr(-1)
# of two groups the second stands above this bit, plus one, so that 0 says there is none
_SECOND = tl.constexpr(31)
_FIRST = tl.constexpr((1 << 31) - 1)
# what is noted of an encoded row, side by side
_TAU, _SQUARE, _REST, _FINITE = (tl.constexpr(i) for i in range(4))
SCALES = tl.constexpr(4)
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
def add_squares(norms, y, CENTRED: tl.constexpr, LOW: tl.constexpr):
    """Adds a block of channels to the squared norms of y and of what one and two limbs leave."""
    norm = norms[0] + tl.sum(y * y, 1)
    # what is not centred is 16-bit already, and leaves nothing
    if not CENTRED:
        return norm, norms[1], norms[2]
    rest = y - y.to(LOW).to(tl.float32)
    rest_low = rest - rest.to(LOW).to(tl.float32)
    return norm, norms[1] + tl.sum(rest * rest, 1), norms[2] + tl.sum(rest_low * rest_low, 1)


@triton.jit(do_not_specialize=["N", "FIRST"])
def encode_rows_kernel(
    x_ptr, centre_ptr, state_ptr, encoded_ptr, scales_ptr, N, FIRST, ROOM, M,
    stride_xb, stride_xm, stride_xh, stride_xd,
    D: tl.constexpr, PADDED_D: tl.constexpr, CENTRED: tl.constexpr, SHIFTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Rounds at most ROOM of N rows, from FIRST on, to 16 bits side by side; notes their scales.

    Where rows are too wide for a tile of the search, it would centre, scale and round them again
    for each tile of codes.
    """
    i_h = tl.program_id(1).to(tl.int64)
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = i < tl.minimum(N - FIRST, ROOM)
    row_ptr = x_ptr + i_h * stride_xh + row_offset(FIRST + i, M, stride_xb, stride_xm)
    centre_ptr += i_h * D
    tau, _, finite = row_scales(
        row_ptr, centre_ptr, state_ptr + i_h * 8, live, stride_xd, D, CENTRED, SHIFTED, BLOCK_D
    )
    LOW: tl.constexpr = encoded_ptr.dtype.element_ty
    place = i_h * ROOM + i
    target_ptr = encoded_ptr + place[:, None] * PADDED_D
    zero = tl.zeros([BLOCK_M], tl.float32)
    norms = (zero, zero, zero)
    for start in range(0, PADDED_D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        y = load_centred(row_ptr, centre_ptr, live, d, stride_xd, D, SHIFTED) * tau[:, None]
        norms = add_squares(norms, y, CENTRED, LOW)
        tl.store(target_ptr + d[None, :], y.to(LOW), mask=live[:, None])
    scale_ptr = scales_ptr + place * SCALES
    tl.store(scale_ptr + _TAU, tau, mask=live)
    tl.store(scale_ptr + _SQUARE, norms[0], mask=live)
    tl.store(scale_ptr + _REST, norms[1], mask=live)
    tl.store(scale_ptr + _FINITE, finite.to(tl.float32), mask=live)


@triton.jit
def load_tau(scales_ptr, i, live):
    """tau of encoded rows [R]."""
    return tl.load(scales_ptr + i * SCALES + _TAU, mask=live, other=1.0)


@triton.jit
def load_norms(scales_ptr, i, live):
    """Squared norms of y and of its rounding, and which are finite, of encoded rows [R]."""
    scale_ptr = scales_ptr + i * SCALES
    square = tl.load(scale_ptr + _SQUARE, mask=live, other=0.0)
    rest = tl.load(scale_ptr + _REST, mask=live, other=0.0)
    return square, rest, tl.load(scale_ptr + _FINITE, mask=live, other=0.0) > 0


@triton.jit
def two_groups(first, second):
    """What ``indices`` holds of rows [R] whose nearest code is in one of two groups."""
    return first.to(tl.int64) | ((second.to(tl.int64) + 1) << _SECOND)


@triton.jit
def first_group(groups):
    """The first code of the first group of each row [R]."""
    return (groups & _FIRST).to(tl.int32)


@triton.jit
def second_group(groups):
    """The first code of the second group of each row [R], -1 where there is none."""
    return (groups >> _SECOND).to(tl.int32) - 1


@triton.jit
def append(list_ptr, count_ptr, n, chosen):
    """Puts the chosen rows on a list; their order changes no result."""
    flags = chosen.to(tl.int32)
    base = tl.atomic_add(count_ptr, tl.sum(flags, 0))
    tl.store(list_ptr + base + tl.cumsum(flags, 0) - 1, n, mask=chosen)
