# SPDX-License-Identifier: Apache-2.0
"""The lookup with its squared error in one pass, and its gradients in another.

The error is summed in two stages of fixed order, each program its rows and one program the
partial sums, so that the bits of the loss depend on nothing but the input.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import compute_dtype

_BLOCK_P = 1024


def quantize(x: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of x ``[B, M, H, D]``, their squared error per element, and 2 / V.

    On a GPU, where no one waits to look, a row whose index is out of range is NaN, as is the loss.
    """
    _checks.index_range(indices, codebook.shape[1])
    dtype = compute_dtype(x, codebook)
    quantized = _output(x, dtype)
    loss, scale = x.new_empty((), dtype=dtype), x.new_empty((), dtype=dtype)
    batch, inner, heads, channels = x.shape
    block_m, block_d = _blocks(channels)
    programs = triton.cdiv(batch * inner, block_m)
    squares = x.new_empty((heads, programs), dtype=dtype)
    valid = x.new_empty((heads, programs), dtype=torch.int32)
    if programs > 0:
        _quantize_kernel[(programs, heads)](
            x, codebook, indices, quantized, squares, valid,
            batch * inner, inner, heads, codebook.shape[1],
            *x.stride(), *codebook.stride(), *indices.stride(), *quantized.stride(),
            D=channels, BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    _loss_kernel[(1,)](squares, valid, loss, scale, squares.numel(), D=channels, BLOCK_P=_BLOCK_P)
    return _rounded(quantized, x), loss, scale


def quantize_backward(
    grad_quantized: Tensor, factor: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    """Gradient of x: ``grad_quantized + factor * (x - c)`` where there is a code, else 0."""
    grad = _output(x, compute_dtype(x, codebook))
    batch, inner, heads, channels = x.shape
    block_m, block_d = _blocks(channels)
    programs = triton.cdiv(batch * inner, block_m)
    if programs > 0:
        _quantize_backward_kernel[(programs, heads)](
            grad_quantized, factor, x, codebook, indices, grad,
            batch * inner, inner, codebook.shape[1],
            *grad_quantized.stride(), *x.stride(), *codebook.stride(), *indices.stride(),
            *grad.stride(), D=channels, BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    return _rounded(grad, x)


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
    grad = x.new_empty(x.shape, dtype=dtype) if to_codes else _output(x, dtype)
    batch, inner, heads, channels = x.shape
    block_m, block_d = _blocks(channels)
    block_m //= 8  # float64 takes twice the registers, and there are three tiles of it
    programs = triton.cdiv(batch * inner, block_m)
    if programs > 0:
        _directional_backward_kernel[(programs, heads)](
            grad_quantized, factor, x, codebook, indices, grad,
            batch * inner, inner, codebook.shape[1],
            *grad_quantized.stride(), *x.stride(), *codebook.stride(), *indices.stride(),
            *grad.stride(), D=channels, ROTATION=gradient == "rotation", TO_CODES=to_codes,
            BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    return grad if to_codes else _rounded(grad, x)


def _blocks(channels: int) -> tuple[int, int]:
    """Rows and channels of a tile of 2048 elements."""
    block_d = min(64, triton.next_power_of_2(channels))
    return 2048 // block_d, block_d


def _output(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a kernel writes what is to be laid out like x, and rounded to it."""
    # hardware rounds to nearest, the interpreter truncates to bfloat16: there torch rounds
    return torch.empty_like(x, dtype=dtype if triton.knobs.runtime.interpret else x.dtype)


def _rounded(output: Tensor, x: Tensor) -> Tensor:
    return output if output.dtype == x.dtype else torch.empty_like(x).copy_(output)


@triton.jit
def _codes_of_rows(
    codes_ptr, indices_ptr, n, live, M, K,
    stride_ch, stride_ck, stride_ib, stride_im, stride_ih,
):  # fmt: skip
    """Where the code of each row starts, which rows have one, and which point outside."""
    i_h = tl.program_id(1).to(tl.int64)
    b, m = (n // M).to(tl.int64), (n % M).to(tl.int64)
    index_ptr = indices_ptr + b * stride_ib + m * stride_im + i_h * stride_ih
    index = tl.load(index_ptr, mask=live, other=-1)
    outside = (index < -1) | (index >= K)
    safe = tl.where(outside | (index == -1), 0, index)
    return codes_ptr + i_h * stride_ch + safe * stride_ck, live & (index != -1), outside


@triton.jit
def _row_offset(n, M, stride_b, stride_m, stride_h):
    i_h = tl.program_id(1).to(tl.int64)
    return (n // M).to(tl.int64) * stride_b + (n % M).to(tl.int64) * stride_m + i_h * stride_h


@triton.jit
def _quantize_kernel(
    x_ptr, codes_ptr, indices_ptr, quantized_ptr, squares_ptr, valid_ptr, N, M, H, K,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ch, stride_ck, stride_cd,
    stride_ib, stride_im, stride_ih, stride_qb, stride_qm, stride_qh, stride_qd,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the codes of a tile of rows; one partial sum and one count a program."""
    T: tl.constexpr = squares_ptr.dtype.element_ty
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = n < N
    code_ptr, valid, outside = _codes_of_rows(
        codes_ptr, indices_ptr, n, live, M, K,
        stride_ch, stride_ck, stride_ib, stride_im, stride_ih,
    )  # fmt: skip
    x_ptr += _row_offset(n, M, stride_xb, stride_xm, stride_xh)
    quantized_ptr += _row_offset(n, M, stride_qb, stride_qm, stride_qh)
    squares = tl.zeros([BLOCK_M, BLOCK_D], T)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        d_long = d.to(tl.int64)[None, :]
        inside = (d < D)[None, :]
        mask = valid[:, None] & inside
        code = tl.load(code_ptr[:, None] + d_long * stride_cd, mask=mask, other=0.0).to(T)
        code = tl.where(outside[:, None] & inside, float("nan"), code)
        x = tl.load(x_ptr[:, None] + d_long * stride_xd, mask=mask, other=0.0).to(T)
        squares += (x - code) * (x - code)
        q = code.to(quantized_ptr.dtype.element_ty)
        tl.store(quantized_ptr[:, None] + d_long * stride_qd, q, mask=live[:, None] & inside)
    i_out = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(squares_ptr + i_out, tl.sum(tl.sum(squares, 1), 0))
    tl.store(valid_ptr + i_out, tl.sum(valid.to(tl.int32), 0))


@triton.jit
def _loss_kernel(
    squares_ptr, valid_ptr, loss_ptr, scale_ptr, P, D: tl.constexpr, BLOCK_P: tl.constexpr
):
    """Mean of the squares and 2 / V from the P partial sums, in one program and in float64."""
    total = tl.zeros([BLOCK_P], tl.float64)
    rows = tl.zeros([BLOCK_P], tl.float64)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        total += tl.load(squares_ptr + p, mask=p < P, other=0.0).to(tl.float64)
        rows += tl.load(valid_ptr + p, mask=p < P, other=0).to(tl.float64)
    elements = tl.sum(rows, 0) * D
    divisor = tl.maximum(elements, 1.0)
    tl.store(loss_ptr, (tl.sum(total, 0) / divisor).to(loss_ptr.dtype.element_ty))
    scale = tl.where(elements > 0, 2.0 / divisor, 0.0)
    tl.store(scale_ptr, scale.to(scale_ptr.dtype.element_ty))


@triton.jit
def _quantize_backward_kernel(
    grad_ptr, factor_ptr, x_ptr, codes_ptr, indices_ptr, out_ptr, N, M, K,
    stride_gb, stride_gm, stride_gh, stride_gd, stride_xb, stride_xm, stride_xh, stride_xd,
    stride_ch, stride_ck, stride_cd, stride_ib, stride_im, stride_ih,
    stride_ob, stride_om, stride_oh, stride_od,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a tile of rows."""
    WIDE: tl.constexpr = (
        x_ptr.dtype.element_ty == tl.float64 or codes_ptr.dtype.element_ty == tl.float64
    )
    T: tl.constexpr = tl.float64 if WIDE else tl.float32
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = n < N
    code_ptr, valid, outside = _codes_of_rows(
        codes_ptr, indices_ptr, n, live, M, K,
        stride_ch, stride_ck, stride_ib, stride_im, stride_ih,
    )  # fmt: skip
    x_ptr += _row_offset(n, M, stride_xb, stride_xm, stride_xh)
    grad_ptr += _row_offset(n, M, stride_gb, stride_gm, stride_gh)
    out_ptr += _row_offset(n, M, stride_ob, stride_om, stride_oh)
    factor = tl.load(factor_ptr).to(T)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        d_long = d.to(tl.int64)[None, :]
        inside = (d < D)[None, :]
        mask = valid[:, None] & inside
        code = tl.load(code_ptr[:, None] + d_long * stride_cd, mask=mask, other=0.0).to(T)
        code = tl.where(outside[:, None] & inside, float("nan"), code)
        x = tl.load(x_ptr[:, None] + d_long * stride_xd, mask=mask, other=0.0).to(T)
        grad = tl.load(grad_ptr[:, None] + d_long * stride_gd, mask=mask, other=0.0).to(T)
        grad += factor * (x - code)
        grad = tl.where(mask, grad, 0.0).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr[:, None] + d_long * stride_od, grad, mask=live[:, None] & inside)


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
    code_ptr, valid, outside = _codes_of_rows(
        codes_ptr, indices_ptr, n, live, M, K,
        stride_ch, stride_ck, stride_ib, stride_im, stride_ih,
    )  # fmt: skip
    x_ptr += _row_offset(n, M, stride_xb, stride_xm, stride_xh)
    grad_ptr += _row_offset(n, M, stride_gb, stride_gm, stride_gh)
    out_ptr += _row_offset(n, M, stride_ob, stride_om, stride_oh)
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
