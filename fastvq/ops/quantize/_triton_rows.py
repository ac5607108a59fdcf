# SPDX-License-Identifier: Apache-2.0
"""What the kernels of the lookup share: tiles of rows, the codes of rows, and outputs."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.ops._layout import power_of_two


def blocks(channels: int) -> tuple[int, int]:
    """Rows and channels of a tile of 2048 elements."""
    block_d = min(64, power_of_two(channels))
    return 2048 // block_d, block_d


def output(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Where a kernel writes what is to be laid out like x, and rounded to it."""
    # hardware rounds to nearest, the interpreter truncates to bfloat16: there torch rounds
    return torch.empty_like(x, dtype=dtype if triton.knobs.runtime.interpret else x.dtype)


def rounded(output: Tensor, x: Tensor) -> Tensor:
    return output if output.dtype == x.dtype else torch.empty_like(x).copy_(output)


@triton.jit
def codes_of_rows(
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
def row_offset(n, M, stride_b, stride_m, stride_h):
    i_h = tl.program_id(1).to(tl.int64)
    return (n // M).to(tl.int64) * stride_b + (n % M).to(tl.int64) * stride_m + i_h * stride_h
