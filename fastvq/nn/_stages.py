# SPDX-License-Identifier: Apache-2.0
"""What residual quantizers share: how many of their Q stages a vector takes, and their checks."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks


def taken(rows: Tensor, usable: Tensor | None, stages: int, dropout: float) -> Tensor | None:
    """How many of the stages each of the rows ``[B, M, D]`` takes, ``[B, M]``; None for all.

    A sample takes n of them, uniform in 1 to Q, with the probability ``dropout``; a row that is
    not usable takes none.
    """
    count = None
    if dropout > 0:
        size, device = (rows.shape[0], 1), rows.device
        some = torch.randint(1, stages + 1, size, device=device)
        drops = torch.rand(size, device=device) < dropout
        count = torch.where(drops, some, stages).expand(rows.shape[:2])
    if usable is not None:
        count = torch.where(usable, stages if count is None else count, 0)
    return count


def padded(indices: Tensor, stages: int) -> Tensor:
    """Indices ``[..., q]`` of the first stages as ``[..., Q]``, with -1 for the others."""
    missing = stages - indices.shape[-1]
    return torch.nn.functional.pad(indices, (0, missing), value=-1) if missing else indices


def check_levels(levels: int | None, stages: int) -> int:
    """How many stages a call is for, all unless given; raises unless there are as many."""
    levels = stages if levels is None else levels
    if isinstance(levels, bool) or not isinstance(levels, int):
        raise TypeError(f"levels must be an int, got {type(levels).__name__}")
    if not 1 <= levels <= stages:
        raise ValueError(f"levels must be in [1, {stages}], got {levels}")
    return levels


def check_indices(indices: Tensor, stages: int, num_codes: int) -> None:
    """Raises unless indices are integers ``[..., q]``, q in 1 to Q, of codes there are."""
    _checks.integers("indices", indices)
    if indices.ndim == 0 or not 1 <= indices.shape[-1] <= stages:
        raise ValueError(
            f"indices must be [..., q] with q in [1, {stages}], got {_checks.shape(indices)}"
        )
    _checks.index_range(indices, num_codes)
