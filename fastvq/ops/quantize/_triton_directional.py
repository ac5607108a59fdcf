# SPDX-License-Identifier: Apache-2.0
"""The gradients that are turned or mixed for each row: ``rotation`` and ``diveq``."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import ceil_div, compute_dtype
from fastvq.ops.quantize._triton_rows import blocks, codes_of_rows, output, rounded, row_offset


def directional_backward(
    grad_quantized: Tensor,
    factor: Tensor,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    gradient: str,
    to_codes: bool,
) -> Tensor:
    """Gradient of x, or of each row's code: the estimator's, plus ``factor * (x - c)``; else 0."""
    _checks.index_range(indices, codebook.shape[1])
    dtype = compute_dtype(x, codebook)
    grad = x.new_empty(x.shape, dtype=dtype) if to_codes else output(x, dtype)
    batch, inner, heads, channels = x.shape
    block_m, block_d = blocks(channels)
    block_m //= 8  # float64 takes twice the registers, and there are three tiles of it
    programs = ceil_div(batch * inner, block_m)
    if programs > 0:
        _directional_backward_kernel[(programs, heads)](
            grad_quantized, factor, x, codebook, indices, grad,
            batch * inner, inner, codebook.shape[1],
            *grad_quantized.stride(), *x.stride(), *codebook.stride(), *indices.stride(),
            *grad.stride(), D=channels, ROTATION=gradient == "rotation", TO_CODES=to_codes,
            BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    return grad if to_codes else rounded(grad, x)


@triton.jit
def _wide_tile(ptr, d, stride_d, mask):
    """A tile ``[BLOCK_M, BLOCK_D]`` of rows, in float64."""
    return tl.load(ptr[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0).to(
        tl.float64
    )


@triton.jit
def _directional_backward_kernel(
    grad_ptr, factor_ptr, x_ptr, codes_ptr, indices_ptr, out_ptr, N, M, K,
    stride_gb, stride_gm, stride_gh, stride_gd, stride_xb, stride_xm, stride_xh, stride_xd,
    stride_ch, stride_ck, stride_cd, stride_ib, stride_im, stride_ih,
    stride_ob, stride_om, stride_oh, stride_od,
    D: tl.constexpr, ROTATION: tl.constexpr, TO_CODES: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Dot products of a tile of rows, then a weighted sum of g, x and x - c for each."""
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = n < N
    code_ptr, valid, outside = codes_of_rows(
        codes_ptr, indices_ptr, n, live, M, K,
        stride_ch, stride_ck, stride_ib, stride_im, stride_ih,
    )  # fmt: skip
    x_ptr += row_offset(n, M, stride_xb, stride_xm, stride_xh)
    grad_ptr += row_offset(n, M, stride_gb, stride_gm, stride_gh)
    out_ptr += row_offset(n, M, stride_ob, stride_om, stride_oh)
    # of x with itself, c with itself, x with c, g with x, g with c; diveq takes
    # x - c for x, and leaves the others zero
    xx = tl.zeros([BLOCK_M], tl.float64)
    cc = tl.zeros([BLOCK_M], tl.float64)
    xc = tl.zeros([BLOCK_M], tl.float64)
    gx = tl.zeros([BLOCK_M], tl.float64)
    gc = tl.zeros([BLOCK_M], tl.float64)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = valid[:, None] & (d < D)[None, :]
        code = _wide_tile(code_ptr, d, stride_cd, mask)
        x = _wide_tile(x_ptr, d, stride_xd, mask)
        grad = _wide_tile(grad_ptr, d, stride_gd, mask)
        if ROTATION:
            xx += tl.sum(x * x, 1)
            cc += tl.sum(code * code, 1)
            xc += tl.sum(x * code, 1)
            gx += tl.sum(grad * x, 1)
            gc += tl.sum(grad * code, 1)
        else:
            xx += tl.sum((x - code) * (x - code), 1)
            gx += tl.sum(grad * (x - code), 1)
    if ROTATION:
        turns = xx > 0
        inverse = tl.where(turns, 1.0 / tl.sqrt(tl.where(turns, xx, 1.0)), 0.0)
        norm_c = tl.sqrt(cc)
        inverse_c = tl.where(cc > 0, 1.0 / tl.where(cc > 0, norm_c, 1.0), 0.0)
        scale = norm_c * inverse
        along_c = gc * inverse_c
        opening = 1.0 + xc * inverse * inverse_c
        bisects = opening > 2.0**-32
        mean = (gx * inverse + along_c) / tl.where(bisects, opening, 1.0)
        mean = tl.where(bisects, mean, 0.0)
        of_grad = tl.where(turns, scale, 1.0)
        of_x = (scale * (2 * along_c - mean) - mean) * inverse
        of_difference = mean * inverse
    else:
        differs = xx > 0
        of_difference = tl.where(differs, -gx / tl.where(differs, xx, 1.0), 0.0)
        of_grad, of_x = tl.full([BLOCK_M], 1.0, tl.float64), cc
        if TO_CODES:  # what x does not get
            of_grad, of_difference = cc, -of_difference
    of_difference += tl.load(factor_ptr).to(tl.float64)
    of_difference = tl.where(outside, float("nan"), of_difference)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = valid[:, None] & (d < D)[None, :]
        code = _wide_tile(code_ptr, d, stride_cd, mask)
        x = _wide_tile(x_ptr, d, stride_xd, mask)
        grad = _wide_tile(grad_ptr, d, stride_gd, mask)
        total = of_grad[:, None] * grad + of_x[:, None] * x + of_difference[:, None] * (x - code)
        total = tl.where(mask, total, 0.0)
        if out_ptr.dtype.element_ty != tl.float64:
            total = total.to(tl.float32)
        out = out_ptr[:, None] + d.to(tl.int64)[None, :] * stride_od
        total = total.to(out_ptr.dtype.element_ty)
        tl.store(out, total, mask=live[:, None] & (d < D)[None, :])
