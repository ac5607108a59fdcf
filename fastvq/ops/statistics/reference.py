# SPDX-License-Identifier: Apache-2.0
"""The specification of the statistics, accumulated in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import compute_dtype, gather_codes


def statistics(
    x: Tensor, indices: Tensor, num_codes: int, codebook: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Counts ``[H, K]`` and sums ``[H, K, D]`` of x ``[B, M, H, D]`` by indices ``[B, M, H]``."""
    _checks.index_range(indices, num_codes)
    heads, channels = x.shape[-2:]
    rows = x.double()
    if codebook is not None:
        rows = rows - gather_codes(codebook.double(), indices)
    counted = (indices >= 0) & (indices < num_codes) & torch.isfinite(x).all(-1)
    # one bin more than there are codes takes what is left out
    bins = torch.where(counted, indices, num_codes)
    rows = torch.where(counted.unsqueeze(-1), rows, 0)
    rows = torch.cat([rows, torch.ones_like(rows[..., :1])], dim=-1)  # [B, M, H, D + 1]
    totals = torch.stack(
        [_sum_by_bin(rows[:, :, h], bins[:, :, h], num_codes) for h in range(heads)]
    )  # [H, K, D + 1]
    dtype = compute_dtype(x, codebook)
    return totals[..., channels].to(dtype), totals[..., :channels].to(dtype)


def _sum_by_bin(rows: Tensor, bins: Tensor, num_codes: int) -> Tensor:
    """Sums of rows ``[B, M, C]`` by bin ``[B, M]``: ``[K, C]``."""
    # the backward of an embedding is the one indexed sum of torch that is deterministic on every
    # device: index_add and scatter_add are float atomics on a GPU
    sums = torch.ops.aten.embedding_dense_backward(
        rows.flatten(0, 1), bins.flatten(), num_codes + 1, -1, False
    )
    return sums[:num_codes]
