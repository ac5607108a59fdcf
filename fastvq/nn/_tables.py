# SPDX-License-Identifier: Apache-2.0
"""The vectors of indices, from tables of codes."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.nn import _layout
from fastvq.ops._layout import compute_dtype


def lookup(indices: Tensor, codes: Tensor) -> Tensor:
    """Codes ``[..., D]`` of int64 indices ``[...]`` into ``[K, D]``; zeros for -1."""
    vectors = torch.nn.functional.embedding(indices.clamp_min(0), codes)
    return torch.where((indices >= 0).unsqueeze(-1), vectors, 0)


def total(indices: Tensor, codebooks: Tensor) -> Tensor:
    """The sums ``[..., D]`` of the codes of int64 indices ``[..., q]`` into the first q of Q."""
    first, *more = zip(indices.unbind(-1), codebooks, strict=False)
    vectors = lookup(*first)
    for index, codes in more:
        vectors = vectors + lookup(index, codes)
    return vectors


def rests(x: Tensor, indices: Tensor, codebooks: Tensor) -> Tensor:
    """What each level sees of x ``[..., D]``, ``[..., q, D]``: x less the codes ahead of it.

    The gradient passes to x and not to those codes.
    """
    rest, found = x.to(compute_dtype(x, codebooks)), []
    for index, codes in zip(indices.unbind(-1), codebooks.detach(), strict=True):
        found.append(rest)
        rest = rest - lookup(index, codes)
    return torch.stack(found, -2)


def decode(indices: Tensor, codes: Tensor, dtype: torch.dtype, channel_dim: int) -> Tensor:
    """Checked indices of one table, as vectors of a dtype with their channels where they belong."""
    _checks.integers("indices", indices)
    _checks.index_range(indices, codes.shape[0])
    return _layout.decoded(lookup(indices.long(), codes).to(dtype), channel_dim)
