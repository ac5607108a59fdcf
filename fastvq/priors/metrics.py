# SPDX-License-Identifier: Apache-2.0
"""Bits per code: what a prior pays, and what it must pay less than."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.priors.base import Context, Prior


@torch.no_grad()
def bits_per_code(
    prior: Prior,
    codes: Tensor,
    labels: Tensor | None = None,
    *,
    context: Context | None = None,
    batch_size: int = 256,
) -> float:
    """Mean of ``-log2 p(z_t | z_1, ..., z_(t-1), label)`` over all codes.

    Args:
        prior: in eval mode, or the dropout of training is measured with it.
        codes: int64 ``[N, *shape]``, N at least 1.
        labels: int64 ``[N]`` for a class-conditional prior.
        context: for a prior with one; see :meth:`Prior.forward`.
        batch_size: grids at a time; it bounds the memory and changes the answer by rounding only.

    Returns:
        Bits per code, summed in float64.
    """
    _checks.positive("batch_size", batch_size)
    if len(codes) == 0:
        raise ValueError("codes must hold at least one grid, got none")
    total = 0.0
    for start in range(0, len(codes), batch_size):
        rows = slice(start, start + batch_size)
        nll = prior.nll(
            codes[rows],
            None if labels is None else labels[rows],
            None if context is None else _rows(context, rows),
        )
        total += float(nll.double().sum())
    return total / codes.numel() / math.log(2)


def _rows(context: Context, rows: slice) -> Context:
    if isinstance(context, tuple):
        return tuple(grid[rows] for grid in context)
    return context[rows]


def entropy_bits(codes: Tensor, codebook_size: int) -> float:
    """Entropy of the histogram of all codes: the rate of coding each without any context.

    Args:
        codes: int64 of any shape with at least one element, in [0, K).
        codebook_size: K.

    Returns:
        Bits per code, in [0, log2 K].
    """
    return float(_entropies(codes.reshape(-1, 1), codebook_size))


def per_position_bits(codes: Tensor, codebook_size: int) -> float:
    """Entropy of the histogram at each position, averaged over positions.

    What a prior must beat: it knows where a code is and nothing of the other codes. The histograms
    are those of ``codes`` themselves, which flatters them when N is small.

    Args:
        codes: int64 ``[N, *shape]``, N at least 1, in [0, K).
        codebook_size: K.

    Returns:
        Bits per code, in [0, log2 K].
    """
    return float(_entropies(codes.flatten(1), codebook_size).mean())


def _entropies(columns: Tensor, codebook_size: int) -> Tensor:
    """Entropy in bits of the histogram of each column of ``[N, T]``, float64 ``[T]``."""
    if columns.dtype != torch.int64:
        raise TypeError(f"codes must be int64, got {_checks.dtype_name(columns)}")
    if columns.numel() == 0:
        raise ValueError("codes must hold at least one grid of at least one code, got none")
    low, high = (int(end) for end in columns.aminmax())
    if low < 0 or high >= codebook_size:
        worst = low if low < 0 else high
        raise ValueError(f"codes must be in [0, K = {codebook_size}), got {worst}")
    positions = columns.shape[1]
    offsets = codebook_size * torch.arange(positions, device=columns.device)
    counts = torch.bincount((columns + offsets).flatten(), minlength=codebook_size * positions)
    shares = counts.view(positions, codebook_size).double() / len(columns)
    return -torch.special.xlogy(shares, shares).sum(1) / math.log(2)
