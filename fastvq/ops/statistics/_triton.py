# SPDX-License-Identifier: Apache-2.0
"""Counts and sums without atomics: a stable sort by code, then sums of pieces in fixed order.

The sorted rows of each code are cut into pieces of at most PIECE rows, one program a piece; a
second launch adds the pieces of each code in order. A code that takes every row costs no more than
one that takes none. Extra memory: the sort's O(N), and the pieces' O((N / PIECE + K) D).

The pieces of code k are numbered from e[k] // PIECE + k on, with e[k] its first row: the codes
before it have no more. So a piece finds its code by e alone, and some numbers are no piece.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import ceil_div, compute_dtype, power_of_two

PIECE = 128
_BLOCK = 256


def statistics(
    x: Tensor, indices: Tensor, num_codes: int, codebook: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Counts ``[H, K]`` and sums ``[H, K, D]`` of x ``[B, M, H, D]`` by indices ``[B, M, H]``.

    Deterministic: the order of every addition follows from the shape and the indices alone.
    """
    _checks.index_range(indices, num_codes)
    batch, inner, heads, channels = x.shape
    dtype = compute_dtype(x, codebook)
    counts = x.new_empty((heads, num_codes), dtype=dtype)
    sums = x.new_empty((heads, num_codes, channels), dtype=dtype)
    order, edges = _sorted(indices, num_codes)
    most = batch * inner // PIECE + num_codes
    partial = x.new_empty((heads, most, channels), dtype=dtype)
    rows = x.new_empty((heads, most), dtype=torch.int32)
    block_d = min(512, power_of_two(channels))
    grid_d = ceil_div(channels, block_d)
    codes = x if codebook is None else codebook
    _piece_kernel[(most, grid_d, heads)](
        x, codes, order, edges, partial, rows,
        batch * inner, inner, num_codes, most, *x.stride(), *codes.stride()[-3:],
        D=channels, RESIDUAL=codebook is not None, PIECE=PIECE,
        BLOCK_R=max(1, min(32, 2048 // block_d)), BLOCK_D=block_d,
    )  # fmt: skip
    _sum_kernel[(num_codes, grid_d, heads)](
        partial, rows, edges, counts, sums, num_codes, most,
        D=channels, PIECE=PIECE, BLOCK_R=max(1, min(32, 2048 // block_d)), BLOCK_D=block_d,
    )  # fmt: skip
    return counts, sums


def _sorted(indices: Tensor, num_codes: int) -> tuple[Tensor, Tensor]:
    """Row numbers ``[H, N]`` by code, and where each code's begin and the last one's end."""
    batch, inner, heads = indices.shape
    rows = batch * inner
    # narrow keys are what a radix sort is fast on
    narrow = torch.int16 if num_codes < 2**15 else torch.int32
    keys = indices.new_empty((heads, rows), dtype=narrow)
    edges = indices.new_empty((heads, num_codes + 1))
    if rows > 0:
        _keys_kernel[(ceil_div(rows, _BLOCK), heads)](
            indices, keys, rows, inner, num_codes, *indices.stride(), BLOCK=_BLOCK
        )
    keys, order = torch.sort(keys, dim=-1, stable=True)
    _edges_kernel[(ceil_div(num_codes + 1, _BLOCK), heads)](
        keys, edges, rows, num_codes, BLOCK=_BLOCK
    )
    return order, edges


@triton.jit
def _keys_kernel(
    indices_ptr, keys_ptr, N, M, K, stride_ib, stride_im, stride_ih, BLOCK: tl.constexpr
):  # fmt: skip
    """What rows are sorted by: their code, or a number outside [0, K), which no edge encloses."""
    i_h = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b, m = (n // M).to(tl.int64), (n % M).to(tl.int64)
    index_ptr = indices_ptr + b * stride_ib + m * stride_im + i_h * stride_ih
    index = tl.load(index_ptr, mask=n < N, other=-1)
    key = tl.minimum(tl.maximum(index, -1), K).to(keys_ptr.dtype.element_ty)
    tl.store(keys_ptr + i_h * N + n, key, mask=n < N)


@triton.jit
def _edges_kernel(keys_ptr, edges_ptr, N, K, BLOCK: tl.constexpr):
    """The first row of each code, and of what comes after the last: a search by halves."""
    i_h = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    low = tl.zeros([BLOCK], tl.int32)
    high = low + N
    left = tl.program_id(0) * 0 + N  # a tensor, also where N is 1 and compiled in
    while left > 0:
        middle = low + (high - low) // 2
        wide = low < high
        below = tl.load(keys_ptr + i_h * N + middle, mask=wide, other=K) < k
        high = tl.where(wide & (below == 0), middle, high)
        low = tl.where(wide & below, middle + 1, low)
        left = left // 2
    tl.store(edges_ptr + i_h * (K + 1) + k, low.to(tl.int64), mask=k <= K)


@triton.jit
def _code_of(edges_ptr, piece, K, PIECE: tl.constexpr):
    """The code that ``piece`` belongs to: the first that ends above it, K if none does."""
    low = piece * 0
    high = low + K
    while low < high:
        middle = (low + high) // 2
        above = tl.load(edges_ptr + middle + 1) // PIECE + middle + 1 > piece
        high = tl.where(above, middle, high)
        low = tl.where(above, low, middle + 1)
    return low


@triton.jit
def _piece_kernel(
    x_ptr, codes_ptr, order_ptr, edges_ptr, partial_ptr, rows_ptr, N, M, K, P,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ch, stride_ck, stride_cd,
    D: tl.constexpr, RESIDUAL: tl.constexpr, PIECE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum and number of the finite rows of one piece."""
    i_piece = tl.program_id(0)
    i_h = tl.program_id(2).to(tl.int64)
    edges_ptr += i_h * (K + 1)
    k = _code_of(edges_ptr, i_piece, K, PIECE)
    first = tl.load(edges_ptr + k)
    begin = first + (i_piece - first // PIECE - k) * PIECE
    end = tl.minimum(begin + PIECE, tl.load(edges_ptr + k + 1, mask=k < K, other=0))
    # what lies below the first code's has none
    if (first <= begin) & (begin < end):
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        code = tl.zeros([BLOCK_D], partial_ptr.dtype.element_ty)
        if RESIDUAL:
            code_ptr = codes_ptr + i_h * stride_ch + k.to(tl.int64) * stride_ck
            code = tl.load(code_ptr + d.to(tl.int64) * stride_cd, mask=d < D, other=0.0)
            code = code.to(partial_ptr.dtype.element_ty)
        total = tl.zeros([BLOCK_R, BLOCK_D], partial_ptr.dtype.element_ty)
        counted = tl.zeros([BLOCK_R], tl.int32)
        for start in range(begin, end, BLOCK_R):
            position = start + tl.arange(0, BLOCK_R)
            live = position < end
            n = tl.load(order_ptr + i_h * N + position, mask=live, other=0)
            row_ptr = x_ptr + n // M * stride_xb + n % M * stride_xm + i_h * stride_xh
            finite = live & finite_rows(row_ptr, live, stride_xd, D, BLOCK_D)
            mask = finite[:, None] & (d < D)[None, :]
            offset = d.to(tl.int64)[None, :] * stride_xd
            x = tl.load(row_ptr[:, None] + offset, mask=mask, other=0.0)
            x = x.to(partial_ptr.dtype.element_ty) - code[None, :]
            total += tl.where(mask, x, 0.0)
            counted += finite.to(tl.int32)
        i_out = i_h * P + i_piece
        tl.store(partial_ptr + i_out * D + d, tl.sum(total, 0), mask=d < D)
        tl.store(rows_ptr + i_out, tl.sum(counted, 0), mask=tl.program_id(1) == 0)


@triton.jit
def finite_rows(row_ptr, live, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Which rows hold neither NaN nor Inf in any of their D channels."""
    faults = tl.zeros(live.shape, tl.int32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = live[:, None] & (d < D)[None, :]
        x = tl.load(row_ptr[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
        faults += tl.sum((tl.abs(x) < float("inf")).to(tl.int32) ^ 1, 1)
    return faults == 0


@triton.jit
def _sum_kernel(
    partial_ptr, rows_ptr, edges_ptr, counts_ptr, sums_ptr, K, P,
    D: tl.constexpr, PIECE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds the pieces of one code, in their order."""
    i_k = tl.program_id(0)
    i_h = tl.program_id(2).to(tl.int64)
    edges_ptr += i_h * (K + 1) + i_k
    first = tl.load(edges_ptr)
    begin = first // PIECE + i_k
    end = begin + tl.cdiv(tl.load(edges_ptr + 1) - first, PIECE)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_R, BLOCK_D], sums_ptr.dtype.element_ty)
    counted = tl.zeros([BLOCK_R], tl.int64)
    for start in range(begin, end, BLOCK_R):
        piece = i_h * P + start + tl.arange(0, BLOCK_R)
        live = piece < i_h * P + end
        mask = live[:, None] & (d < D)[None, :]
        total += tl.load(partial_ptr + piece[:, None] * D + d[None, :], mask=mask, other=0.0)
        counted += tl.load(rows_ptr + piece, mask=live, other=0).to(tl.int64)
    i_out = i_h * K + i_k
    tl.store(sums_ptr + i_out * D + d, tl.sum(total, 0), mask=d < D)
    count = tl.sum(counted, 0).to(counts_ptr.dtype.element_ty)
    tl.store(counts_ptr + i_out, count, mask=tl.program_id(1) == 0)
