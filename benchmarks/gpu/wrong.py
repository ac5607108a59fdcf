# SPDX-License-Identifier: Apache-2.0
"""Who answers wrongly, against float64, in memory that does not grow with the codebook."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import testing

_ELEMENTS = 1 << 26


@torch.no_grad()
def wrong_share(x: Tensor, codebook: Tensor, indices: Tensor) -> float:
    """Share of the rows of x ``[N, D]`` whose code is farther than the promise allows."""
    wide, codes = x.double(), codebook.double()
    best = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    for part in codes.split(max(1, _ELEMENTS // wide.numel())):
        distances = (wide.unsqueeze(1) - part).square().sum(-1)
        best = torch.minimum(best, distances.amin(1))
    chosen = (wide - codes[indices]).square().sum(-1)
    return (chosen > best * (1 + testing.NEAREST_BUDGET)).double().mean().item()
