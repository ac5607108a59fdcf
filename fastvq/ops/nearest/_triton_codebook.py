# SPDX-License-Identifier: Apache-2.0
"""What the search needs to know of a codebook: O(K D) work in two small launches.

The proof in ``_triton.py`` names the quantities: centre m, scale sigma, limbs, half norms, bounds.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.ops._layout import ceil_div

# columns of Codebook.state; the first five hold float32 bits, whose order is that of the integers
RANGE, RESIDUAL, RESIDUAL_LOW, NORM, HALF, PENDING, UNRESOLVED = (tl.constexpr(i) for i in range(7))
STATE_COLUMNS = 8
# in the place of a counter: every row, not those of a list
ALL_ROWS = tl.constexpr(-1)
LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
# any centre is correct; the mean of this many codes is about as good as that of all
_SAMPLE = tl.constexpr(64)
# odd and near the golden ratio of 2^16: spreads the sample over sorted and gridded codebooks
_SPREAD = tl.constexpr(40503)
_BLOCK_R = 16


class Codebook(NamedTuple):
    """A codebook made ready for the search."""

    limbs: Tensor  # [H, L, K', D'] 16-bit, negated, zero where padded or not finite
    half: Tensor  # [H, K'] half squared norms (0 for products), +inf for what is no code
    weight: Tensor  # [H, K'] float64: 1 / norm under cosine, 0 for zero vectors
    centre: Tensor  # [H, D] float32
    state: Tensor  # [H, 8] int32: bounds as float bits, then the two row counters


def prepare(
    codebook: Tensor, metric: str, *, centred: bool, padded: tuple[int, int], low: torch.dtype
) -> Codebook:
    """Encodes codebook ``[H, K, D]`` into 16-bit limbs padded to ``padded`` = (K', D').

    Args:
        codebook: float32, float16 or bfloat16, any strides.
        metric: ``euclidean``, ``cosine`` or ``dot``.
        centred: subtract a centre and scale; otherwise the codes already are of type ``low``.
        padded: multiples of the search's block of codes and of its block of channels.
        low: the 16-bit type of the limbs.
    """
    heads, codes, channels = codebook.shape
    rows, columns = padded
    new = codebook.new_empty
    ready = Codebook(
        limbs=new((heads, 2 if centred else 1, rows, columns), dtype=low),
        half=new((heads, rows), dtype=torch.float32),
        weight=new((heads, rows), dtype=torch.float64),
        centre=new((heads, channels), dtype=torch.float32),
        state=codebook.new_zeros((heads, STATE_COLUMNS), dtype=torch.int32),
    )
    block_d = min(32, columns)
    grid = (ceil_div(rows, _BLOCK_R), heads)
    shape = (codes, rows, *codebook.stride())
    _centre_kernel[grid](
        codebook, ready.weight, ready.centre, ready.state, *shape,
        D=channels, COSINE=metric == "cosine", CENTRED=centred,
        BLOCK_R=_BLOCK_R, BLOCK_D=block_d,
    )  # fmt: skip
    _encode_kernel[grid](
        codebook, ready.weight, ready.centre, ready.state, ready.limbs, ready.half, *shape,
        D=channels, PADDED_D=columns, EUCLIDEAN=metric == "euclidean", CENTRED=centred,
        BLOCK_R=_BLOCK_R, BLOCK_D=block_d,
    )  # fmt: skip
    return ready


@triton.jit
def inverse_power_of_two(value):
    """1 / 2^e with 2^e <= value < 2^(e + 1), e kept where both are normal numbers."""
    exponent = value.to(tl.int32, bitcast=True) >> 23
    exponent = tl.minimum(tl.maximum(exponent, 1), 253)
    return ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit
def code_scale(state_ptr):
    """sigma: brings the largest centred component of the codebook into [1, 2)."""
    span = tl.load(state_ptr + RANGE).to(tl.float32, bitcast=True)
    return tl.where(span > 0, inverse_power_of_two(span), 1.0)


@triton.jit
def _raise_bound(state_ptr, column: tl.constexpr, values):
    """Lifts a bound to the largest of ``values`` [R] >= 0: a maximum has no order to depend on."""
    largest = tl.max(values.to(tl.float32), 0)
    tl.atomic_max(state_ptr + column, largest.to(tl.int32, bitcast=True))


@triton.jit
def _inverse_norm(rows_ptr, live, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """1 / |c| of each row [R] in float64, 0 for zero vectors and what is not finite."""
    square = tl.zeros(live.shape, tl.float64)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = live[:, None] & (d < D)[None, :]
        c = tl.load(rows_ptr[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
        square += tl.sum(c.to(tl.float64) * c.to(tl.float64), 1)
    usable = (square > 0) & (square < float("inf"))
    return tl.where(usable, 1.0 / tl.sqrt(tl.where(usable, square, 1.0)), 0.0)


@triton.jit
def _centre_kernel(
    codes_ptr, weight_ptr, centre_ptr, state_ptr,
    K, PADDED_K, stride_h, stride_k, stride_d,
    D: tl.constexpr, COSINE: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes weights and centre, and raises RANGE to the largest |component| about the centre."""
    i_block = tl.program_id(0)
    i_h = tl.program_id(1).to(tl.int64)
    codes_ptr += i_h * stride_h
    state_ptr += i_h * 8
    k = i_block * BLOCK_R + tl.arange(0, BLOCK_R)
    live = k < K
    rows_ptr = codes_ptr + k.to(tl.int64) * stride_k
    sample = tl.arange(0, _SAMPLE) * _SPREAD % K
    sample_ptr = codes_ptr + sample.to(tl.int64) * stride_k
    everywhere = tl.full([_SAMPLE], 1, tl.int1)
    weight = tl.full([BLOCK_R], 1.0, tl.float64)
    sample_weight = tl.full([_SAMPLE], 1.0, tl.float64)
    if COSINE:
        weight = _inverse_norm(rows_ptr, live, stride_d, D, BLOCK_D)
        sample_weight = _inverse_norm(sample_ptr, everywhere, stride_d, D, BLOCK_D)
    tl.store(weight_ptr + i_h * PADDED_K + k, weight, mask=k < PADDED_K)

    span = tl.zeros([BLOCK_R], tl.float64)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        offset = d.to(tl.int64)[None, :] * stride_d
        inside = (d < D)[None, :]
        centre = tl.zeros([BLOCK_D], tl.float32)
        if CENTRED:
            s = tl.load(sample_ptr[:, None] + offset, mask=inside, other=0.0).to(tl.float64)
            finite = tl.abs(s) < float("inf")
            total = tl.sum(tl.where(finite, s * sample_weight[:, None], 0.0), 0)
            share = tl.maximum(tl.sum(finite.to(tl.float64), 0), 1.0)
            centre = (total / share).to(tl.float32)
        if i_block == 0:
            tl.store(centre_ptr + i_h * D + d, centre, mask=d < D)
        c = tl.load(rows_ptr[:, None] + offset, mask=live[:, None] & inside, other=0.0)
        c = c.to(tl.float64)
        part = tl.abs(c * weight[:, None] - centre.to(tl.float64)[None, :])
        finite = (tl.abs(c) < float("inf")) & live[:, None] & inside
        span = tl.maximum(span, tl.max(tl.where(finite, part, 0.0), 1))
    _raise_bound(state_ptr, RANGE, tl.minimum(span, LARGEST))


@triton.jit
def _encode_kernel(
    codes_ptr, weight_ptr, centre_ptr, state_ptr, limbs_ptr, half_ptr,
    K, PADDED_K, stride_h, stride_k, stride_d,
    D: tl.constexpr, PADDED_D: tl.constexpr, EUCLIDEAN: tl.constexpr, CENTRED: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the limbs and half norms, and raises the bounds that the certificate rests on."""
    i_h = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    live = k < K
    state_ptr += i_h * 8
    rows_ptr = codes_ptr + i_h * stride_h + k.to(tl.int64) * stride_k
    weight = tl.load(weight_ptr + i_h * PADDED_K + k, mask=live, other=0.0)
    scale = 1.0
    if CENTRED:
        scale = code_scale(state_ptr)

    faults = tl.zeros([BLOCK_R], tl.int32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = live[:, None] & (d < D)[None, :]
        c = tl.load(rows_ptr[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
        faults += tl.sum((tl.abs(c.to(tl.float32)) < float("inf")).to(tl.int32) ^ 1, 1)
    usable = live & (faults == 0)

    square = tl.zeros([BLOCK_R], tl.float64)
    residual = tl.zeros([BLOCK_R], tl.float64)
    residual_low = tl.zeros([BLOCK_R], tl.float64)
    limbs = 2 if CENTRED else 1
    plane = PADDED_K.to(tl.int64) * PADDED_D
    base = i_h * limbs * plane + k.to(tl.int64)[:, None] * PADDED_D
    stored = (k < PADDED_K)[:, None]
    for start in range(0, PADDED_D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        mask = usable[:, None] & (d < D)[None, :]
        c = tl.load(rows_ptr[:, None] + d.to(tl.int64)[None, :] * stride_d, mask=mask, other=0.0)
        t = c.to(tl.float64)
        if CENTRED:
            centre = tl.load(centre_ptr + i_h * D + d, mask=d < D, other=0.0).to(tl.float64)
            t = tl.where(mask, (t * weight[:, None] - centre[None, :]) * scale, 0.0)
        # negated, so that a score is one fused multiply-add
        high = (-t.to(tl.float32)).to(limbs_ptr.dtype.element_ty)
        tl.store(limbs_ptr + base + d[None, :], high, mask=stored)
        rest = t + high.to(tl.float64)
        square += tl.sum(t * t, 1)
        residual += tl.sum(rest * rest, 1)
        if CENTRED:
            low = (-rest.to(tl.float32)).to(limbs_ptr.dtype.element_ty)
            tl.store(limbs_ptr + base + plane + d[None, :], low, mask=stored)
            rest += low.to(tl.float64)
            residual_low += tl.sum(rest * rest, 1)
    half = square * 0.5 if EUCLIDEAN else square * 0.0
    # only what is no code is infinite; one that overflows makes its bound infinite instead
    stored_half = tl.where(usable, tl.minimum(half, LARGEST), float("inf"))
    tl.store(half_ptr + i_h * PADDED_K + k, stored_half.to(tl.float32), mask=k < PADDED_K)
    _raise_bound(state_ptr, RESIDUAL, tl.sqrt(residual))
    _raise_bound(state_ptr, RESIDUAL_LOW, tl.sqrt(residual_low))
    _raise_bound(state_ptr, NORM, tl.sqrt(square))
    _raise_bound(state_ptr, HALF, half)
