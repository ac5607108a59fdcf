# SPDX-License-Identifier: Apache-2.0
"""A codebook's step in two launches: ``Codebook._move`` and ``_revive``, which say what it is.

The first moves how much each code is used and takes the mean of it, which says what is dead; the
second moves the codes, and puts rows of the batch in the place of the dead ones.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

from fastvq.ops._layout import ceil_div, power_of_two
from fastvq.ops.statistics._triton import finite_rows

# no fewer than a program has threads: each then writes only what it has read itself
_SIZES = 4096


def update(
    vectors: Tensor,
    cluster_size: Tensor,
    counts: Tensor,
    residuals: Tensor,
    *,
    decay: float,
    moves: bool,
    unit_norm: bool,
    revived: tuple[Tensor, Tensor, Tensor, float] | None,
) -> None:
    """Moves cluster_size ``[H, K]`` and, if asked, vectors ``[H, K, D]``, in place.

    The first four are float32 and contiguous. ``revived`` holds x ``[B, M, H, D]``, its indices
    ``[B, M, H]``, the number of a row for each code ``[H, K]``, and the fraction of the mean below
    which a code is dead.
    """
    # versions count up as by torch's own writes: a backward that needs what was there says so
    heads, codes, channels = vectors.shape
    uniform = counts.new_empty(heads)
    _sizes_kernel[(heads,)](
        cluster_size, counts, uniform, decay, 1 - decay, codes, BLOCK_K=_SIZES, num_warps=8
    )
    if moves or revived is not None:
        block_d = min(64, power_of_two(channels))
        block_k = min(64, 1024 // block_d)
        if revived is None:
            # nothing is read of them
            x, indices, picks, threshold, inner = vectors, counts, counts, 0.0, 1
            strides = (0,) * 7
        else:
            x, indices, picks, threshold = revived
            strides, inner = (*x.stride(), *indices.stride()), x.shape[1]
        _codes_kernel[(ceil_div(codes, block_k), heads)](
            vectors, cluster_size, residuals, uniform, x, indices, picks, 1 - decay, threshold,
            codes, inner, *strides, D=channels, MOVES=moves, UNIT=unit_norm,
            REVIVES=revived is not None, BLOCK_K=block_k, BLOCK_D=block_d,
        )  # fmt: skip
        increment_version(vectors)
    increment_version(cluster_size)


@triton.jit
def _sizes_kernel(
    sizes_ptr, counts_ptr, uniform_ptr, decay, rate, K, BLOCK_K: tl.constexpr
):  # fmt: skip
    """Moves the counts of one head, and takes their mean."""
    i_h = tl.program_id(0).to(tl.int64)
    sizes_ptr += i_h * K
    counts_ptr += i_h * K
    taken = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        taken += tl.load(counts_ptr + k, mask=k < K, other=0.0)
    asked = tl.sum(taken, 0) > 0
    total = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        size = tl.load(sizes_ptr + k, mask=k < K, other=0.0)
        count = tl.load(counts_ptr + k, mask=k < K, other=0.0)
        size = tl.where(asked, decay * size + rate * count, size)
        tl.store(sizes_ptr + k, size, mask=k < K)
        total += size
    tl.store(uniform_ptr + i_h, tl.sum(total, 0) / K)


@triton.jit
def _moved(vectors_ptr, residuals_ptr, rate, offset, mask):
    """A tile of codes, each after a step that is finite, or where it was."""
    step = rate[:, None] * tl.load(residuals_ptr + offset, mask=mask, other=0.0)
    step = tl.where(tl.abs(step) < float("inf"), step, 0.0)
    return tl.load(vectors_ptr + offset, mask=mask, other=0.0) + step


@triton.jit
def _codes_kernel(
    vectors_ptr, sizes_ptr, residuals_ptr, uniform_ptr, x_ptr, indices_ptr, picks_ptr,
    rate, threshold, K, M,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ib, stride_im, stride_ih,
    D: tl.constexpr, MOVES: tl.constexpr, UNIT: tl.constexpr, REVIVES: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Moves a tile of codes, or gives a dead one its row, where that has a code and is finite."""
    i_h = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    live = k < K
    i_k = i_h * K + k
    size = tl.load(sizes_ptr + i_k, mask=live, other=1.0)
    tiny: tl.constexpr = 2.0**-126
    rate = tl.div_rn(tl.zeros_like(size) + rate, tl.where(size < tiny, tiny, size))
    chosen = k < 0
    row_ptr = x_ptr + i_k * 0
    uniform = size
    if REVIVES:
        uniform = tl.load(uniform_ptr + i_h)
        dead = live & (size < threshold * uniform)
        n = tl.load(picks_ptr + i_k, mask=dead, other=0)
        b, m = n // M, n % M
        index_ptr = indices_ptr + b * stride_ib + m * stride_im + i_h * stride_ih
        chosen = tl.load(index_ptr, mask=dead, other=-1) >= 0
        row_ptr = x_ptr + b * stride_xb + m * stride_xm + i_h * stride_xh
        chosen &= finite_rows(row_ptr, chosen, stride_xd, D, BLOCK_D)
    norm = tl.zeros_like(size) + 1.0
    if MOVES and UNIT:
        square = tl.zeros_like(size)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D)
            offset = i_k[:, None] * D + d[None, :]
            mask = live[:, None] & (d < D)[None, :]
            moved = _moved(vectors_ptr, residuals_ptr, rate, offset, mask)
            square += tl.sum(moved * moved, 1)
        norm = tl.sqrt_rn(square)
        norm = tl.where(norm < 1e-12, 1e-12, norm)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        offset = i_k[:, None] * D + d[None, :]
        written = chosen
        code = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
        if MOVES:
            written = live
            mask = live[:, None] & (d < D)[None, :]
            code = _moved(vectors_ptr, residuals_ptr, rate, offset, mask)
            if UNIT:
                code = tl.div_rn(code, tl.zeros_like(code) + norm[:, None])
        if REVIVES:
            mask = chosen[:, None] & (d < D)[None, :]
            found_ptr = row_ptr[:, None] + d.to(tl.int64)[None, :] * stride_xd
            found = tl.load(found_ptr, mask=mask, other=0.0).to(tl.float32)
            code = tl.where(chosen[:, None], found, code)
        # several threads may have read what one of them writes
        tl.debug_barrier()
        tl.store(vectors_ptr + offset, code, mask=written[:, None] & (d < D)[None, :])
    if REVIVES:
        tl.store(sizes_ptr + i_k, tl.zeros_like(size) + uniform, mask=chosen)
