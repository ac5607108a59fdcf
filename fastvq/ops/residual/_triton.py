# SPDX-License-Identifier: Apache-2.0
"""Residual quantization by levels: the search, then one pass that moves the residual on."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.ops._layout import ceil_div, compute_dtype, power_of_two


def residual(
    x: Tensor, codebooks: Tensor, levels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum of codes ``[B, M, D]``, indices ``[B, M, Q]``, and ``[Q]`` losses and 2 / V."""
    dtype = compute_dtype(x, codebooks)
    batch, length, channels = x.shape
    depth, rows = codebooks.shape[0], batch * length
    rest = torch.empty(x.shape, dtype=dtype, device=x.device).copy_(x)
    quantized = torch.zeros_like(rest)
    indices = x.new_empty((batch, length, depth), dtype=torch.int64)
    block_m, block_d = _blocks(channels)
    programs = ceil_div(rows, block_m)
    squares = x.new_zeros((depth, programs), dtype=torch.float64)
    for q in range(depth):
        # through the dispatcher: ops are siblings, and siblings do not import each other
        found, _ = torch.ops.fastvq.nearest.default(
            rest.unsqueeze(2), codebooks[q : q + 1], "euclidean", "exact"
        )
        index = found.squeeze(2)
        indices[..., q] = index if levels is None else torch.where(levels > q, index, -1)
        if rows > 0:
            _step_kernel[(programs,)](
                rest, quantized, codebooks[q], indices[..., q], squares[q],
                rows, depth, *codebooks.stride()[1:],
                D=channels, BLOCK_M=block_m, BLOCK_D=block_d,
            )  # fmt: skip
    elements = (indices >= 0).sum((0, 1), dtype=torch.float64) * channels
    losses = squares.sum(-1) / elements.clamp_min(1)
    scales = torch.where(elements > 0, 2.0 / elements.clamp_min(1), 0.0)
    return quantized, indices, losses.to(dtype), scales.to(dtype)


def residual_backward(
    grad_quantized: Tensor, factors: Tensor, x: Tensor, codebooks: Tensor, indices: Tensor
) -> Tensor:
    """The gradient of x: ``grad_quantized`` and ``factors[q]`` times the residual after level q."""
    dtype = compute_dtype(x, codebooks)
    batch, length, channels = x.shape
    grad = torch.empty(x.shape, dtype=dtype, device=x.device)
    rows = batch * length
    block_m, block_d = _blocks(channels)
    if rows > 0:
        _backward_kernel[(ceil_div(rows, block_m), ceil_div(channels, block_d))](
            grad_quantized, factors, x, codebooks, indices.contiguous(), grad,
            rows, length, *grad_quantized.stride(), *x.stride(), *codebooks.stride(),
            Q=codebooks.shape[0], D=channels, BLOCK_M=block_m, BLOCK_D=block_d,
        )  # fmt: skip
    return grad


def _blocks(channels: int) -> tuple[int, int]:
    """Rows and channels of a tile of 2048 elements."""
    block_d = min(64, power_of_two(channels))
    return 2048 // block_d, block_d


@triton.jit
def _step_kernel(
    rest_ptr, quantized_ptr, codes_ptr, indices_ptr, squares_ptr,
    N, stride_in, stride_ck, stride_cd,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Takes the code of each row from its residual to its sum; one partial loss a program."""
    T: tl.constexpr = rest_ptr.dtype.element_ty
    n = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    index = tl.load(indices_ptr + n * stride_in, mask=n < N, other=-1)
    used = index >= 0
    code_ptr = codes_ptr + tl.where(used, index, 0) * stride_ck
    squares = tl.zeros([BLOCK_M, BLOCK_D], T)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
        mask = used[:, None] & (d < D)
        code = tl.load(code_ptr[:, None] + d * stride_cd, mask=mask, other=0.0).to(T)
        offset = n[:, None] * D + d
        rest = tl.load(rest_ptr + offset, mask=mask, other=0.0) - code
        quantized = tl.load(quantized_ptr + offset, mask=mask, other=0.0) + code
        squares += rest * rest
        tl.store(rest_ptr + offset, rest, mask=mask)
        tl.store(quantized_ptr + offset, quantized, mask=mask)
    tl.store(squares_ptr + tl.program_id(0), tl.sum(tl.sum(squares, 1), 0).to(tl.float64))


@triton.jit
def _backward_kernel(
    grad_ptr, factors_ptr, x_ptr, codes_ptr, indices_ptr, out_ptr, N, M,
    stride_gb, stride_gm, stride_gd, stride_xb, stride_xm, stride_xd,
    stride_cq, stride_ck, stride_cd,
    Q: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the gradient of a tile; the residual stays in registers over the levels."""
    T: tl.constexpr = out_ptr.dtype.element_ty
    n = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    d = (tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)[None, :]
    live = (n < N)[:, None] & (d < D)
    b, m = (n // M)[:, None], (n % M)[:, None]
    rest = tl.load(x_ptr + b * stride_xb + m * stride_xm + d * stride_xd, mask=live, other=0.0).to(
        T
    )
    grad = tl.load(
        grad_ptr + b * stride_gb + m * stride_gm + d * stride_gd, mask=live, other=0.0
    ).to(T)
    for q in range(Q):
        index = tl.load(indices_ptr + n * Q + q, mask=n < N, other=-1)
        used = (index >= 0)[:, None]
        code_ptr = codes_ptr + q * stride_cq + tl.where(index >= 0, index, 0)[:, None] * stride_ck
        rest -= tl.load(code_ptr + d * stride_cd, mask=live & used, other=0.0).to(T)
        grad += tl.where(used, tl.load(factors_ptr + q).to(T) * rest, 0.0)
    tl.store(out_ptr + n[:, None] * D + d, grad, mask=live)
