# SPDX-License-Identifier: Apache-2.0
"""Counts and sums without atomics: a stable sort by code, then sums of pieces in fixed order.

The sorted rows of each code are cut into pieces of at most PIECE rows, one program a piece; a
second launch adds the pieces of each code in order. A code that takes every row costs no more than
one that takes none. Extra memory: the sort's O(N), and the pieces' O((N / PIECE + K) D).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import compute_dtype

PIECE = 128


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
    pieces = _cut(indices, num_codes)
    most = batch * inner // PIECE + num_codes
    partial = x.new_empty((heads, most, channels), dtype=dtype)
    rows = x.new_empty((heads, most), dtype=torch.int32)
    block_d = min(512, triton.next_power_of_2(channels))
    grid_d = triton.cdiv(channels, block_d)
    codes = x if codebook is None else codebook
    _piece_kernel[(most, grid_d, heads)](
        x, codes, pieces.order, pieces.edges, pieces.ends, partial, rows,
        batch * inner, inner, num_codes, most, *x.stride(), *codes.stride()[-3:],
        D=channels, RESIDUAL=codebook is not None, PIECE=PIECE,
        BLOCK_R=max(1, min(32, 2048 // block_d)), BLOCK_D=block_d,
    )  # fmt: skip
    _sum_kernel[(num_codes, grid_d, heads)](
        partial, rows, pieces.ends, counts, sums, num_codes, most,
        D=channels, BLOCK_R=max(1, min(32, 2048 // block_d)), BLOCK_D=block_d,
    )  # fmt: skip
    return counts, sums


class _Pieces(NamedTuple):
    """The rows in the order of their codes, and how the codes are cut."""

    order: Tensor  # [H, N] row numbers
    edges: Tensor  # [H, K + 1] where each code's rows begin and end
    ends: Tensor  # [H, K] how many pieces there are up to and with each code


def _cut(indices: Tensor, num_codes: int) -> _Pieces:
    # rows without a code sort below the first or above the last, so that no edge encloses them;
    # narrow keys are what a radix sort is fast on
    narrow = torch.int16 if num_codes < 2**15 else torch.int32
    keys = indices.flatten(0, 1).T.clamp(-1, num_codes).to(narrow).contiguous()  # [H, N]
    keys, order = torch.sort(keys, dim=-1, stable=True)
    bounds = torch.arange(num_codes + 1, dtype=narrow, device=indices.device)
    edges = torch.searchsorted(keys, bounds.expand(len(keys), -1).contiguous())
    ends = ((edges.diff(dim=-1) + (PIECE - 1)) // PIECE).cumsum(-1)
    return _Pieces(order, edges, ends)


@triton.jit
def _first_above(ends_ptr, piece, K):
    """The code that ``piece`` belongs to: the first whose end lies above it, K if none does."""
    low = piece * 0
    high = low + K
    while low < high:
        middle = (low + high) // 2
        above = tl.load(ends_ptr + middle) > piece
        high = tl.where(above, middle, high)
        low = tl.where(above, low, middle + 1)
    return low


@triton.jit
def _piece_kernel(
    x_ptr, codes_ptr, order_ptr, edges_ptr, ends_ptr, partial_ptr, rows_ptr, N, M, K, P,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ch, stride_ck, stride_cd,
    D: tl.constexpr, RESIDUAL: tl.constexpr, PIECE: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum and number of the finite rows of one piece."""
    i_piece = tl.program_id(0)
    i_h = tl.program_id(2).to(tl.int64)
    ends_ptr += i_h * K
    edges_ptr += i_h * (K + 1)
    k = _first_above(ends_ptr, i_piece, K)
    if k < K:
        before = tl.load(ends_ptr + k - 1, mask=k > 0, other=0)
        begin = tl.load(edges_ptr + k) + (i_piece - before) * PIECE
        end = tl.minimum(begin + PIECE, tl.load(edges_ptr + k + 1))
        d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        code = tl.zeros([BLOCK_D], partial_ptr.dtype.element_ty)
        if RESIDUAL:
            code_ptr = codes_ptr + i_h * stride_ch + k.to(tl.int64) * stride_ck
            code = tl.load(code_ptr + d.to(tl.int64) * stride_cd, mask=d < D, other=0.0)
            code = code.to(partial_ptr.dtype.element_ty)
        total = tl.zeros([BLOCK_R, BLOCK_D], partial_ptr.dtype.element_ty)
        counted = tl.zeros([BLOCK_R], tl.int32)
        for first in range(begin, end, BLOCK_R):
            position = first + tl.arange(0, BLOCK_R)
            live = position < end
            n = tl.load(order_ptr + i_h * N + position, mask=live, other=0)
            row_ptr = x_ptr + n // M * stride_xb + n % M * stride_xm + i_h * stride_xh
            finite = live & _finite(row_ptr, live, stride_xd, D, BLOCK_D)
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
def _finite(row_ptr, live, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
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
    partial_ptr, rows_ptr, ends_ptr, counts_ptr, sums_ptr, K, P,
    D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Adds the pieces of one code, in their order."""
    i_k = tl.program_id(0)
    i_h = tl.program_id(2).to(tl.int64)
    end = tl.load(ends_ptr + i_h * K + i_k)
    begin = tl.load(ends_ptr + i_h * K + i_k - 1, mask=i_k > 0, other=0)
    d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_R, BLOCK_D], sums_ptr.dtype.element_ty)
    counted = tl.zeros([BLOCK_R], tl.int64)
    for first in range(begin, end, BLOCK_R):
        piece = i_h * P + first + tl.arange(0, BLOCK_R)
        live = piece < i_h * P + end
        mask = live[:, None] & (d < D)[None, :]
        total += tl.load(partial_ptr + piece[:, None] * D + d[None, :], mask=mask, other=0.0)
        counted += tl.load(rows_ptr + piece, mask=live, other=0).to(tl.int64)
    i_out = i_h * K + i_k
    tl.store(sums_ptr + i_out * D + d, tl.sum(total, 0), mask=d < D)
    count = tl.sum(counted, 0).to(counts_ptr.dtype.element_ty)
    tl.store(counts_ptr + i_out, count, mask=tl.program_id(1) == 0)
