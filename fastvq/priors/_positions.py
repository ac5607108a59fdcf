# SPDX-License-Identifier: Apache-2.0
"""Position as fixed features, so that a prior works on a grid of any size."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# waves of 4, 8, ..., 512 positions: neighbours differ clearly, positions 256 apart still differ
_WAVELENGTHS = tuple(4 * 2**octave for octave in range(8))
POSITION_FEATURES = 4 * len(_WAVELENGTHS)


def position_features(height: int, width: int, like: Tensor) -> Tensor:
    """Sines and cosines of row and column, ``[H, W, POSITION_FEATURES]``.

    Args:
        height: rows of the grid.
        width: columns of the grid.
        like: a tensor whose dtype and device the result takes.

    Source: sinusoids as in Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5,
    with wavelengths in octaves.
    """
    rows = _waves(height, like)[:, None].expand(-1, width, -1)
    columns = _waves(width, like)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1)


def _waves(size: int, like: Tensor) -> Tensor:
    positions = torch.arange(size, device=like.device, dtype=torch.float32)
    wavelengths = torch.tensor(_WAVELENGTHS, device=like.device, dtype=torch.float32)
    phases = positions[:, None] * (2 * math.pi / wavelengths)
    return torch.cat([phases.sin(), phases.cos()], dim=-1).to(like.dtype)
