# SPDX-License-Identifier: Apache-2.0
"""The codes of the winning groups again, in float32 and from the vectors themselves."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvq.ops.nearest._triton_codebook import ALL_ROWS, NORM, code_scale
from fastvq.ops.nearest._triton_float64 import distance64
from fastvq.ops.nearest._triton_rows import (
    NOT_FINITE,
    UNWRITTEN,
    append,
    first_group,
    load_rows,
    row_numbers,
    row_offset,
    row_scales,
    second_group,
)
from fastvq.ops.nearest._triton_shares import LAST

_UNIT = tl.constexpr(2.0**-24)
# smallest scaled squared distance whose terms cannot have underflowed to its harm
_SMALLEST = tl.constexpr(2.0**-90)
# what the search may be off, relative to the distance
_TOLERANCE = tl.constexpr(1e-5)


@triton.jit(do_not_specialize=["N"])
def rescore_kernel(
    x_ptr, codes_ptr, half_ptr, weight_ptr, centre_ptr, state_ptr,
    indices_ptr, distances_ptr, append_ptr,
    N, M, H, PADDED_K,
    stride_xb, stride_xm, stride_xh, stride_xd, stride_ch, stride_ck, stride_cd,
    D: tl.constexpr, METRIC: tl.constexpr, CENTRED: tl.constexpr, SHIFTED: tl.constexpr,
    CERTIFY: tl.constexpr, APPEND: tl.constexpr, BLOCK_K: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_M: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Turns groups into indices, writes distances, and appends what float32 cannot decide."""
    i_h = tl.program_id(1).to(tl.int64)
    x_ptr += i_h * stride_xh
    codes_ptr += i_h * stride_ch
    centre_ptr += i_h * D
    state_ptr += i_h * 8
    half_ptr += i_h * PADDED_K
    weight_ptr += i_h * PADDED_K
    append_ptr += i_h * N
    # neighbouring tiles to one program, so that a line of indices is read once
    tiles = tl.cdiv(tl.cdiv(N, BLOCK_M), tl.num_programs(0))
    for i in range(tiles):
        n, exists = row_numbers(tl.program_id(0) * tiles + i, N, indices_ptr, ALL_ROWS, BLOCK_M)
        n_out = n.to(tl.int64) * H + i_h
        groups = tl.load(indices_ptr + n_out, mask=exists, other=UNWRITTEN)
        exists &= groups != UNWRITTEN
        live = exists & (groups != NOT_FINITE)
        row_ptr = x_ptr + row_offset(n, M, stride_xb, stride_xm)
        sigma = code_scale(state_ptr)
        tau = tl.full([BLOCK_M], 1.0, tl.float32)
        if METRIC != "euclidean":
            tau, sigma, _ = row_scales(
                row_ptr, centre_ptr, state_ptr, live, stride_xd, D, True, SHIFTED, BLOCK_D
            )
        value = tl.full([BLOCK_M], float("inf"), tl.float32)
        runner_up = tl.full([BLOCK_M], float("inf"), tl.float32)
        index = tl.full([BLOCK_M], LAST, tl.int32)
        value, index, runner_up = _best_member(
            value, index, runner_up, row_ptr, codes_ptr, half_ptr, weight_ptr, centre_ptr,
            live, first_group(groups), tau, sigma, PADDED_K, stride_xd, stride_ck, stride_cd,
            D, METRIC, CENTRED, BLOCK_K, SPLIT, BLOCK_M, MEMBERS, BLOCK_D,
        )  # fmt: skip
        if CERTIFY:
            second = second_group(groups)
            paired = live & (second >= 0)
            # few rows have two, so few tiles
            if tl.max(paired.to(tl.int32), 0) > 0:
                value, index, runner_up = _best_member(
                    value, index, runner_up, row_ptr, codes_ptr, half_ptr, weight_ptr,
                    centre_ptr, paired, second, tau, sigma,
                    PADDED_K, stride_xd, stride_ck, stride_cd,
                    D, METRIC, CENTRED, BLOCK_K, SPLIT, BLOCK_M, MEMBERS, BLOCK_D,
                )  # fmt: skip
        found = value < float("inf")
        code_ptr = codes_ptr + tl.where(found, index, 0).to(tl.int64) * stride_ck
        if METRIC == "euclidean":
            distance = value / sigma / sigma
        else:
            distance = distance64(
                row_ptr, code_ptr, live, stride_xd, stride_cd, D, METRIC, BLOCK_D
            ).to(tl.float32)
        tl.store(distances_ptr + n_out, tl.where(found, distance, float("nan")), mask=exists)
        key = tl.where(found, index, 0).to(tl.int64)
        if CERTIFY:
            uncertain = live & ~_certain(
                row_ptr, code_ptr, state_ptr, live, value, runner_up, tau, sigma,
                stride_xd, stride_cd, D, METRIC, CENTRED, BLOCK_D,
            )  # fmt: skip
            key = tl.where(uncertain, UNWRITTEN, key)
            if tl.max(uncertain.to(tl.int32), 0) > 0:
                append(append_ptr, state_ptr + APPEND, n, uncertain)
        tl.store(indices_ptr + n_out, key, mask=exists)


@triton.jit
def _best_member(
    value, index, runner_up, row_ptr, codes_ptr, half_ptr, weight_ptr, centre_ptr,
    live, group, tau, sigma, PADDED_K, stride_xd, stride_ck, stride_cd,
    D: tl.constexpr, METRIC: tl.constexpr, CENTRED: tl.constexpr, BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, MEMBERS: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The best of what was found before and of each row's group: value, index and the runner-up's
    value, all [BLOCK_M].

    The value is the squared distance times sigma^2, or minus the product with the centred code
    times tau sigma; +inf where the group holds no code. The lowest of equal values wins.
    """
    # a thread owns pairs of columns, SPLIT * 4 pairs apart
    STEP: tl.constexpr = SPLIT * 8
    group = tl.where(live, group, 0)
    for first in range(0, 2 * BLOCK_K // STEP, MEMBERS):
        member = first + tl.arange(0, MEMBERS)[None, :]
        k = group[:, None] + member // 2 * STEP + member % 2  # [BLOCK_M, MEMBERS]
        half = tl.load(half_ptr + k, mask=k < PADDED_K, other=float("inf"))
        usable = (half < float("inf")) & live[:, None]
        code_ptr = codes_ptr + k.to(tl.int64) * stride_ck
        if METRIC == "euclidean":
            v = _squared(row_ptr, code_ptr, live, usable, sigma, stride_xd, stride_cd, D, BLOCK_D)
        else:
            weight = tl.load(weight_ptr + k, mask=usable, other=0.0).to(tl.float32)
            v = _product(row_ptr, code_ptr, weight, centre_ptr, live, usable, tau, sigma,
                         stride_xd, stride_cd, D, CENTRED, BLOCK_D)  # fmt: skip
        v = tl.where(usable & (v == v), v, float("inf"))
        v_best = tl.min(v, 1)
        k_best = tl.min(tl.where(usable & (v == v_best[:, None]), k, LAST), 1)
        v_next = tl.min(tl.where(k == k_best[:, None], float("inf"), v), 1)
        better = (v_best < value) | ((v_best == value) & (k_best < index))
        runner_up = tl.where(better, tl.minimum(value, v_next), tl.minimum(runner_up, v_best))
        value = tl.where(better, v_best, value)
        index = tl.where(better, k_best, index)
    return value, index, runner_up


@triton.jit
def _squared(
    row_ptr, code_ptr, live, usable, scale, stride_xd, stride_cd,
    D: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Scaled squared distances [BLOCK_M, MEMBERS], from differences: sums over blocks first."""
    total = tl.zeros([usable.shape[0], usable.shape[1], BLOCK_D], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_members(row_ptr[:, None], live[:, None], d, stride_xd, D)
        c = load_members(code_ptr, usable, d, stride_cd, D)
        difference = (x - c) * scale
        total += difference * difference
    return tl.sum(total, 2)


@triton.jit
def _product(
    row_ptr, code_ptr, weight, centre_ptr, live, usable, tau, sigma, stride_xd, stride_cd,
    D: tl.constexpr, CENTRED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Minus the scaled products with the centred codes [BLOCK_M, MEMBERS]."""
    total = tl.zeros([usable.shape[0], usable.shape[1], BLOCK_D], tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_members(row_ptr[:, None], live[:, None], d, stride_xd, D) * tau[:, None, None]
        c = load_members(code_ptr, usable, d, stride_cd, D) * weight[:, :, None]
        if CENTRED:
            c -= tl.load(centre_ptr + d, mask=d < D, other=0.0)[None, None, :]
        total -= x * (c * sigma)
    return tl.sum(total, 2)


@triton.jit
def load_members(row_ptr, usable, d, stride_d, D: tl.constexpr):
    """Channels ``d`` [C] of vectors [R, S] in float32, zero where not usable -> [R, S, C]."""
    mask = usable[:, :, None] & (d < D)[None, None, :]
    offset = d.to(tl.int64)[None, None, :] * stride_d
    return tl.load(row_ptr[:, :, None] + offset, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _certain(
    row_ptr, code_ptr, state_ptr, live, value, runner_up, tau, sigma, stride_xd, stride_cd,
    D: tl.constexpr, METRIC: tl.constexpr, CENTRED: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Whether the choice within the groups is certain for each row."""
    # BLOCK_D - 1 and D / BLOCK_D additions, a difference that counts twice, and its square
    RELATIVE: tl.constexpr = (BLOCK_D + (D + BLOCK_D - 1) // BLOCK_D + 2) * 2.0**-24
    if METRIC == "euclidean":
        certain = (value >= _SMALLEST) & (value < float("inf"))
        if 2 * RELATIVE > _TOLERANCE:
            certain &= runner_up > value + 2 * RELATIVE * value
        doubt = live & ~certain
        if tl.max(doubt.to(tl.int32), 0) > 0:
            certain |= _equal(row_ptr, code_ptr, doubt, stride_xd, stride_cd, D, BLOCK_D)
        return certain
    code_norm = tl.load(state_ptr + NORM).to(tl.float32, bitcast=True)
    if not CENTRED:
        code_norm *= sigma
    norm = _norm(row_ptr, live, tau, stride_xd, D, BLOCK_D)
    error = RELATIVE * norm * code_norm
    if METRIC == "cosine":
        # unit codes, rounded before the centre is taken off
        error += 4 * _UNIT * norm * sigma
    return runner_up > value + 2 * error


@triton.jit
def _norm(row_ptr, live, tau, stride_d, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """|tau x| of each row."""
    square = tl.zeros(live.shape, tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(row_ptr, live, d, stride_d, D).to(tl.float32) * tau[:, None]
        square += tl.sum(x * x, 1)
    return tl.sqrt(square)


@triton.jit
def _equal(row_ptr, code_ptr, live, stride_xd, stride_cd, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows that are bit for bit their code: a distance of 0 is then no underflow."""
    differ = tl.zeros(live.shape, tl.int32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        x = load_rows(row_ptr, live, d, stride_xd, D).to(tl.float32)
        c = load_rows(code_ptr, live, d, stride_cd, D).to(tl.float32)
        differ += tl.sum((x != c).to(tl.int32), 1)
    return differ == 0
