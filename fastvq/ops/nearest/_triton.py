# SPDX-License-Identifier: Apache-2.0
r"""Exact search on matrix units: three passes, each for the rows that the one before cannot prove.

1. **Coarse**, all rows: 16-bit products with float32 accumulators.
2. **Fine**, the rows pass 1 lists: two 16-bit limbs for each operand, short accumulator chains.
3. **float64** by direct differences, the rows pass 2 lists.

Lists are written through atomic counters and read by launches of fixed size: no host
synchronisation, and no result depends on the order of a list. Passes 1 and 2 of few rows share out
the codes to programs that would be idle, and merge what these find (``_triton_shares.py``): the
same scores, and so the same answer, bit for bit.

**Scores.** Let m be any vector (a mean of codes), :math:`c' = c - m` and :math:`x' = x - m`
(euclidean; the products keep x, and cosine takes unit codes). With powers of two :math:`\sigma`
(one for a head) and :math:`\tau` (one for a row),

.. math:: S_k = \tfrac{\tau}{\sigma} b_k - y \cdot c^*_k, \qquad y = \tau x', \quad
          c^*_k = \sigma c'_k, \quad b_k = \tfrac12 \lVert c^*_k \rVert^2 \text{ or } 0

orders the codes as the distance does: it is :math:`\tfrac12 \tau \sigma \lVert x - c_k \rVert^2`
less a constant of the row, or the product less one. Centring is what keeps data far from the
origin out of pass 3; scaling is what lets fp16, with its 11-bit significand, hold any of them.

**The bound.** The matrix units see :math:`\hat y` and :math:`\hat c` (16-bit) and accumulate D'
terms. With :math:`u = 2^{-24}`, and r, n the largest :math:`\lVert c^* - \hat c \rVert` and
:math:`\lVert \hat c \rVert` of the head, measured, not estimated,

.. math:: \lvert S_k - \hat S_k \rvert \le E =
          \underbrace{\lVert y \rVert r}_{\text{codes rounded}}
          + \underbrace{(\lVert y - \hat y \rVert + u \lVert y \rVert) n}_{
            x\text{ rounded, centred}}
          + \underbrace{3 u D' \lVert \hat y \rVert n}_{\text{accumulation}}
          + \underbrace{2 u (\tfrac{\tau}{\sigma} \max_k b_k + \lVert \hat y \rVert n)}_{
            \text{half norms, last addition}}

by Cauchy-Schwarz, term by term. The unit aligns the terms of one step to the largest and truncates
at its last bit, and every term and partial sum is at most :math:`\lVert \hat y \rVert n`: 8 terms
and the accumulator lose at most 9 + 1 units :math:`2u`, fewer than :math:`3u` a term wherever the
unit keeps one bit more than float32, as all since sm_80 do. Of the fine pass the limbs' residuals
take the place of r and :math:`\lVert y - \hat y \rVert`, the product of the low limbs that is left
out adds :math:`\lVert y_l \rVert \max \lVert c_l \rVert`, and D' is one block of channels plus a
rounding for each block. Inputs that are 16-bit on both sides enter unrounded and unscaled: then r
and :math:`\lVert y - \hat y \rVert` are 0.

**The certificate.** Codes are compared in groups. With the groups in the order of their best
scores, the nearest code lies in the first g of them if the next one is more than 2E behind the
first: for a code k of it, :math:`S_k \ge \hat S_k - E > \hat S_1 + E \ge \min_{g_1} S`. One group
suffices most rows, two nearly all that remain. Their few codes are then compared in float32: by
differences, whose relative error at most :math:`(\beta + D / \beta + 2) u` (:math:`\beta` sums of
:math:`D / \beta` terms) stays under half the promised 1e-5, or for the products by a margin of
twice that error. What is not proven goes on; overflow and NaN prove nothing, since they fail every
comparison.

Groups are told apart by scores only where these prove it, so the lowest of bit-equal codes is found
by pass 3, or among the codes of one or two groups, where the index breaks the tie.

**Wide vectors.** Where a tile of x does not fit on chip, x is centred, scaled and rounded before
the coarse pass, as many rows at a time as the device searches at once, and the products read that.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastvq.ops._layout import ceil_div, compute_dtype, power_of_two
from fastvq.ops.nearest._triton_codebook import (
    ALL_ROWS,
    PENDING,
    UNRESOLVED,
    Codebook,
    prepare,
)
from fastvq.ops.nearest._triton_float64 import finish_kernel, refine_kernel
from fastvq.ops.nearest._triton_rescore import rescore_kernel
from fastvq.ops.nearest._triton_rows import SCALES, encode_rows_kernel
from fastvq.ops.nearest._triton_search import search_kernel
from fastvq.ops.nearest._triton_shares import FIELDS, merge_kernel
from fastvq.ops.nearest._triton_tiling import (
    Device,
    Tiling,
    Work,
    padded_channels,
    padded_codes,
    rescore_tiling,
    room,
    search_tiling,
    shares,
)

REFINE = {"BLOCK_M": 8, "BLOCK_K": 16, "num_warps": 4, "maxnreg": 128}
ENCODE = {"BLOCK_M": 16, "BLOCK_D": 32, "num_warps": 4}
MERGE = {"BLOCK_M": 32, "BLOCK_S": 16, "num_warps": 4}
MERGE_PROGRAMS = 512  # shared codes mean few rows: more find nothing to do
_INT64_MAX = torch.iinfo(torch.int64).max


def nearest(x: Tensor, codebook: Tensor, metric: str, precision: str) -> tuple[Tensor, Tensor]:
    """Nearest code of x ``[B, M, H, D]`` in ``[H, K, D]``: indices, distances ``[B, M, H]``.

    Deterministic; the lowest of bit-equal codes wins; O(N + K) extra memory.
    """
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    distances = x.new_empty(x.shape[:-1], dtype=compute_dtype(x, codebook))
    if indices.numel() == 0:
        return indices, distances
    if distances.dtype == torch.float64:
        _search_float64(x, codebook, metric, indices, distances)
    else:
        _search(x, codebook, metric, precision == "exact", indices, distances)
    return indices, distances


def _search(
    x: Tensor, codebook: Tensor, metric: str, exact: bool, indices: Tensor, distances: Tensor
) -> None:
    """The passes one after the other; ``fast`` leaves out what proves and what refines."""
    heads, codes, channels = codebook.shape
    centred = metric == "cosine" or x.dtype != codebook.dtype or x.dtype == torch.float32
    low = torch.float16 if centred else codebook.dtype
    if low == torch.bfloat16 and triton.knobs.runtime.interpret:
        # the interpreter multiplies no bfloat16
        low = torch.float32
    device = _device(x.device)
    work = Work.of(x, codes, centred=centred)
    coarse, fine = (search_tiling(work, device, fine=fine) for fine in (False, True))
    padded = (padded_codes(codes, coarse), padded_channels(channels))
    ready = prepare(codebook, metric, centred=centred, padded=padded, low=low)
    geometry = _Geometry.of(x, codebook)
    shape = (*geometry.shape, padded[0], *geometry.strides[:4])
    flags = {"D": channels, "CENTRED": centred, "CERTIFY": exact}
    flags["SHIFTED"] = centred and metric == "euclidean"
    pending, unresolved = (_row_list(geometry, x) if exact else indices for _ in range(2))

    passes = [_Pass.of(coarse, device, heads, indices, ALL_ROWS, pending, PENDING)]
    if exact:
        passes.append(_Pass.of(fine, device, heads, pending, PENDING, unresolved, UNRESOLVED))
    entries = max(room(geometry.rows, padded[0], p.tiling, p.programs) for p in passes)
    found = x.new_empty((heads, entries, FIELDS.value), dtype=torch.int32)
    for step in passes:
        if step.tiling.constants["ENCODED"]:
            _launch_encoded(step, x, ready, indices, found, geometry, flags)
        else:
            _launch(step, x, x, ready, indices, found, shape, flags)
    again = rescore_tiling(channels, metric, coarse)
    tiles = ceil_div(geometry.rows, again.constants["BLOCK_M"])
    rescore_kernel[(min(tiles, again.programs(device, 1)), heads)](
        x, codebook, ready.half, ready.weight, ready.centre, ready.state,
        indices, distances, unresolved, *shape, *codebook.stride(),
        **flags, METRIC=metric, APPEND=UNRESOLVED.value, **again.constants, **again.options,
    )  # fmt: skip
    if exact:
        _refine(x, codebook, metric, ready, unresolved, indices, distances)


class _Pass(NamedTuple):
    """A pass of the search: the rows that it reads, the list of those that it cannot prove."""

    tiling: Tiling
    programs: int
    rows: Tensor
    source: int  # the counter of ``rows``, or ALL_ROWS
    unproven: Tensor
    goal: int  # the counter of ``unproven``

    @classmethod
    def of(
        cls, tiling: Tiling, device: Device, heads: int, rows: Tensor, source: tl.constexpr,
        unproven: Tensor, goal: tl.constexpr,
    ) -> _Pass:  # fmt: skip
        programs = tiling.programs(device, heads)
        return cls(tiling, programs, rows, source.value, unproven, goal.value)


def _launch(
    step: _Pass, x: Tensor, scales: Tensor, ready: Codebook, indices: Tensor, found: Tensor,
    shape: tuple[int, ...], flags: dict[str, int | bool], first: int = 0,
) -> None:  # fmt: skip
    """Searches the rows of a pass; merges where programs may have shared the codes of a row."""
    every, inner, heads, codes = shape[:4]
    cut, programs, entries = step.tiling.constants, step.programs, found.shape[1]
    listed = step.source >= 0
    rows = min(every - first, inner) if cut["ENCODED"] else every
    # of a list the device alone knows the length, which may be that of one tile
    most = shares(1 if listed else rows, codes, step.tiling, programs)
    items = ceil_div(rows, cut["BLOCK_M"]) * most
    search_kernel[(min(items, programs) if listed else items, heads)](
        x, scales, ready.limbs, ready.half, ready.centre, ready.state, indices,
        step.rows, step.unproven, found, every, first, *shape[1:], entries, programs,
        **flags, LIST=step.source, APPEND=step.goal, **cut, **step.tiling.options,
    )  # fmt: skip
    if most > 1:
        blocks = ceil_div(rows, MERGE["BLOCK_M"])
        merge_kernel[(min(blocks, MERGE_PROGRAMS), heads)](
            found, ready.state, indices, step.rows if listed else step.unproven, step.unproven,
            every, first, rows, heads, codes // cut["BLOCK_K"], entries, programs,
            cut["BLOCK_M"], cut["LEAST"], 4 * cut["SPLIT"], step.source, step.goal,
            CERTIFY=flags["CERTIFY"], **MERGE,
        )  # fmt: skip


def _launch_encoded(
    step: _Pass, x: Tensor, ready: Codebook, indices: Tensor, found: Tensor, geometry: _Geometry,
    flags: dict[str, int | bool],
) -> None:  # fmt: skip
    """Encodes and searches as many rows at a time as the device searches at once: O(1) memory."""
    every, inner, heads = geometry.shape
    padded_d, codes = ready.limbs.shape[-1], ready.limbs.shape[-2]
    tile = step.tiling.constants["BLOCK_M"]
    most = min(step.programs, ceil_div(every, tile)) * tile
    encoded = x.new_empty((heads, most, padded_d), dtype=ready.limbs.dtype)
    scales = x.new_empty((heads, most, SCALES.value), dtype=torch.float32)
    shape = (every, most, heads, codes, 0, padded_d, most * padded_d, 1)
    rounding = {name: value for name, value in flags.items() if name != "CERTIFY"}
    for first in range(0, every, most):
        encode_rows_kernel[(most // ENCODE["BLOCK_M"], heads)](
            x, ready.centre, ready.state, encoded, scales, every, first, most, inner,
            *geometry.strides[:4], PADDED_D=padded_d, **rounding, **ENCODE,
        )  # fmt: skip
        _launch(step, encoded, scales, ready, indices, found, shape, flags, first)


def _search_float64(
    x: Tensor, codebook: Tensor, metric: str, indices: Tensor, distances: Tensor
) -> None:
    """Every row in float64."""
    codes = codebook.double()
    norm = torch.linalg.vector_norm(codes, dim=-1)
    usable = torch.isfinite(codes).all(-1)
    ready = Codebook(
        limbs=codes,
        half=torch.where(usable, 0.0, torch.inf).float(),
        weight=torch.where(norm > 0, norm.reciprocal(), 0.0),
        centre=codes,
        state=indices,
    )
    indices.fill_(_INT64_MAX)
    _refine(x, codebook, metric, ready, None, indices, distances)


def _refine(
    x: Tensor, codebook: Tensor, metric: str, ready: Codebook, listed: Tensor | None,
    indices: Tensor, distances: Tensor,
) -> None:  # fmt: skip
    """float64 over all codes for the listed rows (all rows where there is no list)."""
    heads, codes, channels = codebook.shape
    geometry = _Geometry.of(x, codebook)
    flags = {"D": channels, "METRIC": metric}
    flags["LIST"] = (ALL_ROWS if listed is None else UNRESOLVED).value
    rows = indices if listed is None else listed
    block_d = min(16, power_of_two(channels))
    index_mask = (1 << max(1, (codes - 1).bit_length())) - 1
    items = ceil_div(geometry.rows, REFINE["BLOCK_M"]) * ceil_div(codes, REFINE["BLOCK_K"])
    refine_kernel[(min(items, 4 * _device(x.device).processors), heads)](
        x, codebook, ready.half, ready.weight, ready.state, rows, indices,
        *geometry.shape, codes, ready.half.shape[1], index_mask, *geometry.strides,
        **flags, BLOCK_D=block_d, **REFINE,
    )  # fmt: skip
    tiles = ceil_div(geometry.rows, 32)
    finish_kernel[(min(tiles, 4 * _device(x.device).processors), heads)](
        x, codebook, ready.state, rows, indices, distances,
        *geometry.shape, index_mask, *geometry.strides,
        **flags, BLOCK_M=32, BLOCK_D=block_d, num_warps=4,
    )  # fmt: skip


class _Geometry(NamedTuple):
    """Where the rows of x and the codes lie: row n of a head is at (n // M, n % M)."""

    rows: int
    shape: tuple[int, int, int]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor, codebook: Tensor) -> _Geometry:
        batch, inner, heads, _ = x.shape
        rows = batch * inner
        stride_b, *strides = x.stride()
        # one long run of rows keeps their addresses provably regular; no batch follows it, and so
        # that kernels serve any N, neither number depends on whether 16 divides N
        if batch == 1 or stride_b == inner * x.stride(1):
            inner, stride_b = ceil_div(rows, 16) * 16, 0
        return cls(rows, (rows, inner, heads), (stride_b, *strides, *codebook.stride()))


def _row_list(geometry: _Geometry, x: Tensor) -> Tensor:
    dtype = torch.int32 if geometry.rows < 2**31 else torch.int64
    return x.new_empty((x.shape[2], geometry.rows), dtype=dtype)


@functools.cache
def _device(device: torch.device) -> Device:
    if device.type == "cpu":
        # the interpreter runs programs one by one, cut as for Hopper
        return Device(processors=1, shared=227 << 10, major=9)
    properties = torch.cuda.get_device_properties(device)
    return Device(
        properties.multi_processor_count,
        properties.shared_memory_per_block_optin,
        properties.major,
    )
