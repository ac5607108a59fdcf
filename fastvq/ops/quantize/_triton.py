# SPDX-License-Identifier: Apache-2.0
"""The lookup with its squared error in one pass, and its gradients in another.

The error is summed in two stages of fixed order, each program its rows and one program the
partial sums, so that the bits of the loss depend on nothing but the input.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import ceil_div, compute_dtype
from fastvq.ops.quantize._triton_directional import directional_backward
from fastvq.ops.quantize._triton_rows import blocks, codes_of_rows, output, rounded, row_offset

__all__ = ["directional_backward", "quantize", "quantize_backward"]

_BLOCK_P = 1024


def quantize(x: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of x ``[B, M, H, D]``, their squared error per element, and 2 / V.

    On a GPU, where no one waits to look, a row whose index is out of range is NaN, as is the loss.
    """
    _checks.index_range(indices, codebook.shape[1])
    dtype = compute_dtype(x, codebook)
    quantized = output(x, dtype)
    loss, scale = x.new_empty((), dtype=dtype), x.new_empty((), dtype=dtype)
    batch, inner, heads, channels = x.shape
    block_m, block_d = blocks(channels)
    programs = ceil_div(batch * inner, block_m)
    partial = x.new_empty((2, heads, programs), dtype=dtype)
    if programs > 0:
        _quantize_kernel[(programs, heads)](
            x, codebook, indices, quantized, partial,
            batch * inner, inner, heads, codebook.shape[1],
            *x.stride(), *codebook.stride(), *indices.stride(), *quantized.stride(),
            D=channels, BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    _loss_kernel[(1,)](partial, loss, scale, heads * programs, D=channels, BLOCK_P=_BLOCK_P)
    return rounded(quantized, x), loss, scale


def quantize_backward(
    grad_quantized: Tensor, factor: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    """Gradient of x: ``grad_quantized + factor * (x - c)`` where there is a code, else 0."""
    grad = output(x, compute_dtype(x, codebook))
    batch, inner, heads, channels = x.shape
    block_m, block_d = blocks(channels)
    programs = ceil_div(batch * inner, block_m)
    if programs > 0:
        _quantize_backward_kernel[(programs, heads)](
            grad_quantized, factor, x, codebook, indices, grad,
            batch * inner, inner, codebook.shape[1],
            *grad_quantized.stride(), *x.stride(), *codebook.stride(), *indices.stride(),
            *grad.stride(), D=channels, BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    return rounded(grad, x)


@triton.jit
def _quantize_kernel(
    x_ptr, codes_ptr, indices_ptr, quantized_ptr, partial_ptr, N, M, H, K,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ch, stride_ck, stride_cd,
    stride_ib, stride_im, stride_ih, stride_qb, stride_qm, stride_qh, stride_qd,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the codes of a tile of rows; one partial sum a program, and after all, one count."""
    T: tl.constexpr = partial_ptr.dtype.element_ty
    n = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    live = n < N
    code_ptr, valid, outside = codes_of_rows(
        codes_ptr, indices_ptr, n, live, M, K,
        stride_ch, stride_ck, stride_ib, stride_im, stride_ih,
    )  # fmt: skip
    x_ptr += row_offset(n, M, stride_xb, stride_xm, stride_xh)
    quantized_ptr += row_offset(n, M, stride_qb, stride_qm, stride_qh)
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
    tl.store(partial_ptr + i_out, tl.sum(tl.sum(squares, 1), 0))
    i_out += H * tl.num_programs(0)
    tl.store(partial_ptr + i_out, tl.sum(valid.to(tl.int32), 0).to(T))


@triton.jit
def _loss_kernel(partial_ptr, loss_ptr, scale_ptr, P, D: tl.constexpr, BLOCK_P: tl.constexpr):
    """Mean of the squares and 2 / V from the P partial sums, in one program and in float64."""
    total = tl.zeros([BLOCK_P], tl.float64)
    rows = tl.zeros([BLOCK_P], tl.float64)
    for start in range(0, P, BLOCK_P):
        p = start + tl.arange(0, BLOCK_P)
        total += tl.load(partial_ptr + p, mask=p < P, other=0.0).to(tl.float64)
        rows += tl.load(partial_ptr + P + p, mask=p < P, other=0.0).to(tl.float64)
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
    code_ptr, valid, outside = codes_of_rows(
        codes_ptr, indices_ptr, n, live, M, K,
        stride_ch, stride_ck, stride_ib, stride_im, stride_ih,
    )  # fmt: skip
    x_ptr += row_offset(n, M, stride_xb, stride_xm, stride_xh)
    grad_ptr += row_offset(n, M, stride_gb, stride_gm, stride_gh)
    out_ptr += row_offset(n, M, stride_ob, stride_om, stride_oh)
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
