# SPDX-License-Identifier: Apache-2.0
"""What the kernels of the softmax share: products of tiles, and noise."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def logits_of(
    owners_ptr, columns_ptr, m, j, M, J, scale,
    D: tl.constexpr, DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Scaled products, or negative squared distances, of owners ``[M, D]`` and columns [D, J]."""
    if DOT:
        return scale * products_of(owners_ptr, columns_ptr, m, j, M, J, D, BLOCK_M, BLOCK_K)
    total = tl.zeros([BLOCK_M, BLOCK_K], owners_ptr.dtype.element_ty)
    for d in range(D):
        own = tl.load(owners_ptr + m * D + d, mask=m < M, other=0.0)
        other = tl.load(columns_ptr + j + d * J.to(tl.int64), mask=j < J, other=0.0)
        difference = own[:, None] - other[None, :]
        total += difference * difference
    return -scale * total


@triton.jit
def products_of(
    owners_ptr, columns_ptr, m, j, M, J,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    total = tl.zeros([BLOCK_M, BLOCK_K], owners_ptr.dtype.element_ty)
    for d in range(D):
        own = tl.load(owners_ptr + m * D + d, mask=m < M, other=0.0)
        other = tl.load(columns_ptr + j + d * J.to(tl.int64), mask=j < J, other=0.0)
        total += own[:, None] * other[None, :]
    return total


@triton.jit
def gumbel_noise(code, key, other_key):
    """The noise of pairs; its definition is at the reference."""
    bits = _mix(_mix(code + key) ^ other_key)
    small = _middle(bits)
    large = _middle(bits ^ 0xFFFFFFFF)  # 1 - small
    # what rounding took from 1 - small
    lost = ((1.0 - large) - small) / large
    logarithm = _log(large) + tl.where(small < 0.5, lost, 0.0)
    return -_log(-logarithm)


@triton.jit
def _mix(word):
    word ^= word >> 16
    word *= tl.full([1, 1], 0x85EBCA6B, tl.uint32)
    word ^= word >> 13
    word *= tl.full([1, 1], 0xC2B2AE35, tl.uint32)
    return word ^ (word >> 16)


@triton.jit
def _middle(words):
    """The middle of the interval, one of 2^32 between 0 and 1, that a word names."""
    # two exact halves, so that no conversion rounds otherwise than another's
    high = (words >> 16).to(tl.int32).to(tl.float32)
    low = (words & 0xFFFF).to(tl.int32).to(tl.float32)
    unit: tl.constexpr = 2.0**-32
    return (high * 65536.0 + low) * unit + unit / 2


@triton.jit
def _log(x):
    """log x for normal x > 0. The hardware's is good to 2^-22 of 1, not of a result near 0."""
    half_root: tl.constexpr = 0x3F3504F3  # the square root of 1 / 2
    bits = x.to(tl.int32, bitcast=True) + (0x3F800000 - half_root)
    exponent = ((bits >> 23) - 127).to(tl.float32)
    f = ((bits & 0x7FFFFF) + half_root).to(tl.float32, bitcast=True) - 1.0
    s = f / (2.0 + f)
    z = s * s
    # log(1 + f) = 2 atanh(s), less what is exact of it
    series = z * (z * (z * (z * 0.2222222222 + 0.2857142857) + 0.4) + 0.6666666667)
    half = 0.5 * f * f
    high: tl.constexpr = 0.693145751953125
    low: tl.constexpr = 1.4286068202862268e-06
    return exponent * high + (f - (half - (s * (half + series) + exponent * low)))
