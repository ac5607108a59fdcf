# SPDX-License-Identifier: Apache-2.0
"""The softmax over the codes on a GPU: one program a tile of owners, which goes over the others.

Logits are taken from differences in ordinary float32 (float64) arithmetic, a channel at a time: the
matrix units would round the operands. No program shares a sum, so no atomics and one order.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from fastvq.ops._layout import ceil_div, power_of_two
from fastvq.ops.entropy._triton_maths import gumbel_noise, logits_of, products_of

# pairs in registers
_OWNERS, _OTHERS = 32, 64
# where values are summed too: a product in ordinary arithmetic holds its operands in registers
_FEW_OTHERS = 16
# channels of the values that a program sums; it goes over the others once for each
_CHANNELS = 64


def softmax_rows(
    x: Tensor, codebook: Tensor, bias: Tensor, indices: Tensor | None, metric: str, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, s, the entropy and -log p of the code at ``indices``, ``[H, N]`` each."""
    heads, rows, channels = x.shape
    out = tuple(x.new_empty((heads, rows)) for _ in range(4))
    if rows > 0 and heads > 0:
        columns = _columns(codebook)
        _rows_kernel[(ceil_div(rows, _OWNERS), heads)](
            x, columns, bias, bias if indices is None else indices, *out, _scale(x, scale),
            rows, codebook.shape[1], D=channels, DOT=metric == "dot", CHOSEN=indices is not None,
            BLOCK_M=_OWNERS, BLOCK_K=_OTHERS,
        )  # fmt: skip
    return out


def softmax_sums(
    x: Tensor, codebook: Tensor, bias: Tensor, maximum: Tensor, log_sum: Tensor, factors: Tensor,
    code_factor: Tensor | None, direction: Tensor | None, axes: Tensor | None,
    values: Tensor | None, by_code: bool, metric: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums of p phi, and of p phi times the values of the other side."""
    owners, others = (codebook, x) if by_code else (x, codebook)
    sides = (axes, direction) if by_code else (direction, axes)
    heads, count, channels = owners.shape
    wide = 0 if values is None else values.shape[-1]
    weights = x.new_empty((heads, count))
    totals = x.new_empty((heads, count, wide))
    if count > 0 and heads > 0:
        block_c = min(_CHANNELS, max(16, power_of_two(wide)))
        _sums_kernel[(ceil_div(count, _OWNERS), max(1, ceil_div(wide, block_c)), heads)](
            owners, _columns(others), bias, maximum, log_sum, factors, _or(code_factor, bias),
            _or(sides[0], owners), owners if sides[1] is None else _columns(sides[1]),
            _or(values, owners), weights, totals, _scale(x, scale),
            count, others.shape[1], x.shape[1], codebook.shape[1], D=channels, C=wide,
            DOT=metric == "dot", BY_CODE=by_code, TILTED=code_factor is not None,
            DIRECTED=direction is not None, BLOCK_M=_OWNERS,
            BLOCK_K=_OTHERS if values is None else _FEW_OTHERS, BLOCK_C=block_c, num_warps=8,
        )  # fmt: skip
    return weights, totals


def softmax_samples(
    x: Tensor, codebook: Tensor, bias: Tensor, keys: Tensor, metric: str, scale: float
) -> Tensor:
    """The code of the largest logit plus noise, ``[H, N]``; keys ``[2, H, N]`` seed each row's."""
    heads, rows, channels = x.shape
    out = keys.new_empty((heads, rows))
    if rows > 0 and heads > 0:
        _samples_kernel[(ceil_div(rows, _OWNERS), heads)](
            x, _columns(codebook), bias, keys, out, _scale(x, scale), rows, codebook.shape[1],
            D=channels, DOT=metric == "dot", BLOCK_M=_OWNERS, BLOCK_K=_OTHERS,
        )  # fmt: skip
    return out


def _columns(rows: Tensor) -> Tensor:
    """``[H, D, N]`` of rows ``[H, N, D]``: a channel of the others is read side by side."""
    return rows.mT.contiguous()


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """What a kernel is handed in place of what it will not read."""
    return other if tensor is None else tensor


def _scale(x: Tensor, scale: float) -> Any:
    # a number would reach the kernel as float32
    return x.new_full((1,), scale)


@triton.jit
def _rows_kernel(
    x_ptr, columns_ptr, bias_ptr, indices_ptr, maximum_ptr, log_sum_ptr, entropy_ptr, surprisal_ptr,
    scale_ptr, N, K, D: tl.constexpr, DOT: tl.constexpr, CHOSEN: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The running maximum of each row, and its sums of e^(l - m) and of that times l - m."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    i_h = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    live = n < N
    scale = tl.load(scale_ptr)
    top = tl.full([BLOCK_M], float("-inf"), T)
    total = tl.zeros([BLOCK_M], T)
    moment = tl.zeros([BLOCK_M], T)
    chosen = tl.zeros([BLOCK_M], T)
    wanted = tl.full([BLOCK_M], -1, tl.int64)
    if CHOSEN:
        wanted = tl.load(indices_ptr + i_h * N + n, mask=live, other=-1)
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        logits = logits_of(
            x_ptr + i_h * N * D, columns_ptr + i_h * K * D, n, k, N, K, scale,
            D, DOT, BLOCK_M, BLOCK_K,
        )  # fmt: skip
        bias = tl.load(bias_ptr + i_h * K + k, mask=k < K, other=float("-inf"))
        logits += bias[None, :]
        if CHOSEN:
            chosen += tl.sum(tl.where(k[None, :] == wanted[:, None], logits, 0.0), 1)
        # a row without a finite logit so far keeps -inf, from which nothing may be subtracted
        above = tl.maximum(top, tl.max(logits, 1))
        base = tl.where(above == float("-inf"), 0.0, above)
        fall = tl.where(top == float("-inf"), 0.0, top - base)
        kept = tl.exp(fall)
        moment = kept * (moment + fall * total)
        shifted = logits - base[:, None]
        chance = tl.exp(shifted)
        total = kept * total + tl.sum(chance, 1)
        moment += tl.sum(chance * tl.where(chance == 0.0, 0.0, shifted), 1)
        top = above
    # no code to take, or logits that overflow
    total = tl.where(total > 0, total, float("nan"))
    log_sum = tl.log(total)
    out = i_h * N + n
    tl.store(maximum_ptr + out, top, mask=live)
    tl.store(log_sum_ptr + out, log_sum, mask=live)
    tl.store(entropy_ptr + out, log_sum - moment / total, mask=live)
    tl.store(surprisal_ptr + out, log_sum + (top - chosen), mask=live)


@triton.jit
def _sums_kernel(
    owners_ptr, columns_ptr, bias_ptr, maximum_ptr, log_sum_ptr, factors_ptr, code_factor_ptr,
    own_side_ptr, other_side_ptr, values_ptr, weights_ptr, totals_ptr, scale_ptr,
    M, J, N, K, D: tl.constexpr, C: tl.constexpr, DOT: tl.constexpr, BY_CODE: tl.constexpr,
    TILTED: tl.constexpr, DIRECTED: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Sums over the J others of one of the M owners; rows own them, or BY_CODE the codes do."""
    T: tl.constexpr = owners_ptr.dtype.element_ty
    i_h = tl.program_id(2).to(tl.int64)
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    scale = tl.load(scale_ptr)
    heads_rows = tl.num_programs(2).to(tl.int64) * N
    weights = tl.zeros([BLOCK_M], T)
    totals = tl.zeros([BLOCK_M, BLOCK_C], T)
    for start in range(0, J, BLOCK_K):
        j = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        logits = logits_of(
            owners_ptr + i_h * M * D, columns_ptr + i_h * J * D, m, j, M, J, scale,
            D, DOT, BLOCK_M, BLOCK_K,
        )  # fmt: skip
        # pairs that do not exist get no chance, wherever the rows are
        n = j[None, :] if BY_CODE else m[:, None]
        k = m[:, None] if BY_CODE else j[None, :]
        of_row = i_h * N + n
        row, code = n < N, k < K
        bias = tl.load(bias_ptr + i_h * K + k, mask=code, other=float("-inf"))
        top = tl.load(maximum_ptr + of_row, mask=row, other=float("inf"))
        low = tl.load(log_sum_ptr + of_row, mask=row, other=0.0)
        logarithm = (logits + bias - top) - low
        chance = tl.exp(logarithm)
        logarithm = tl.where(chance == 0.0, 0.0, logarithm)  # the limit of p log p
        phi = tl.load(factors_ptr + of_row, mask=row, other=0.0) * logarithm
        phi += tl.load(factors_ptr + heads_rows + of_row, mask=row, other=0.0)
        if TILTED:
            weight = tl.load(factors_ptr + 2 * heads_rows + of_row, mask=row, other=0.0)
            phi += weight * tl.load(code_factor_ptr + i_h * K + k, mask=code, other=0.0)
        if DIRECTED:
            phi += products_of(
                own_side_ptr + i_h * M * D, other_side_ptr + i_h * J * D, m, j, M, J,
                D, BLOCK_M, BLOCK_K,
            )  # fmt: skip
        terms = tl.where(chance == 0.0, 0.0, chance * phi)
        weights += tl.sum(terms, 1)
        if C > 0:
            mask = (j < J)[:, None] & (c < C)[None, :]
            place = (i_h * J + j)[:, None] * C + c[None, :]
            values = tl.load(values_ptr + place, mask=mask, other=0.0)
            totals += tl.dot(terms, values, input_precision="ieee", out_dtype=T)
    tl.store(weights_ptr + i_h * M + m, weights, mask=(m < M) & (tl.program_id(1) == 0))
    if C > 0:
        mask = (m < M)[:, None] & (c < C)[None, :]
        tl.store(totals_ptr + (i_h * M + m)[:, None] * C + c[None, :], totals, mask=mask)


@triton.jit
def _samples_kernel(
    x_ptr, columns_ptr, bias_ptr, keys_ptr, out_ptr, scale_ptr, N, K,
    D: tl.constexpr, DOT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """The first code of the largest sum of logit and noise."""
    T: tl.constexpr = x_ptr.dtype.element_ty
    i_h = tl.program_id(1).to(tl.int64)
    n = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    live = n < N
    scale = tl.load(scale_ptr)
    keys = i_h * N + n
    heads_rows = tl.num_programs(1).to(tl.int64) * N
    key = tl.load(keys_ptr + keys, mask=live, other=0).to(tl.uint32)
    other_key = tl.load(keys_ptr + heads_rows + keys, mask=live, other=0).to(tl.uint32)
    best = tl.full([BLOCK_M], float("-inf"), T)
    index = tl.zeros([BLOCK_M], tl.int64)
    for start in range(0, K, BLOCK_K):
        k = (start + tl.arange(0, BLOCK_K)).to(tl.int64)
        logits = logits_of(
            x_ptr + i_h * N * D, columns_ptr + i_h * K * D, n, k, N, K, scale,
            D, DOT, BLOCK_M, BLOCK_K,
        )  # fmt: skip
        bias = tl.load(bias_ptr + i_h * K + k, mask=k < K, other=float("-inf"))
        noise = gumbel_noise(k.to(tl.uint32)[None, :], key[:, None], other_key[:, None])
        logits += bias[None, :] + noise.to(T)
        top = tl.max(logits, 1)
        first = tl.min(tl.where(logits == top[:, None], k[None, :], K), 1)
        better = top > best
        index = tl.where(better, first, index)
        best = tl.where(better, top, best)
    tl.store(out_ptr + i_h * N + n, index, mask=live)
