# SPDX-License-Identifier: Apache-2.0
"""The codebooks of residual quantization: one for each level, or one for all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastvq import ops
from fastvq.nn import _stages
from fastvq.nn import start as starts
from fastvq.nn.codebook import Codebook
from fastvq.nn.start import KMeans


class Levels(Codebook):
    """Codes ``[Q, K, D]`` of levels that see x ``[B, M, D]`` less the codes before them."""

    # it is that row less the codes before, which may have moved
    _revives_from_rows = False

    def _centres(self, x: Tensor, usable: Tensor, start: KMeans) -> tuple[Tensor, Tensor]:
        return starts.residual_kmeans(x, usable, self.vectors, start.iterations)

    @torch.no_grad()
    def learn(self, x: Tensor, indices: Tensor) -> None:
        """One training step from x ``[B, M, D]`` and indices ``[B, M, q]``, q in 1 to Q."""
        indices = _stages.padded(indices, len(self.vectors))
        counts, residuals = ops.level_statistics(x, self.vectors, indices)
        self._learn_from(counts, residuals, x, indices)

    def _vectors_at(self, image: Tensor, row: Tensor, x: Tensor, indices: Tensor) -> Tensor:
        found = x[image, row].to(self.vectors.dtype)  # [Q, K, D]
        taken = indices[image, row]  # [Q, K, Q]
        levels = self._levels()
        for q, codes in enumerate(self.codes()[:-1]):
            level = taken[..., q]
            before = (levels > q) & (level >= 0)  # [Q, K]
            code = nn.functional.embedding(level.clamp_min(0), codes)
            found = found - torch.where(before.unsqueeze(-1), code, 0)
        own = taken.gather(-1, levels.expand(taken.shape[:2]).unsqueeze(-1))  # [Q, K, 1]
        return torch.where(own >= 0, found, torch.nan)

    def _levels(self) -> Tensor:
        """The level whose residuals may take the place of a code, for ``[Q, K]`` or a part."""
        return torch.arange(len(self.vectors), device=self.vectors.device).unsqueeze(1)


class SharedLevels(Levels):
    """Codes ``[1, K, D]`` that all Q levels use, as which they are read: ``[Q, K, D]``, a view."""

    def __init__(self, levels: int, codebook_size: int, dim: int, **options: Any) -> None:
        super().__init__(1, codebook_size, dim, **options)
        self.levels = levels

    def codes(self) -> Tensor:
        """The codes ``[Q, K, D]``."""
        return super().codes().expand(self.levels, -1, -1)

    def snapshot(self) -> Tensor:
        """The codes ``[Q, K, D]`` as of now, safe to keep for backward."""
        return super().snapshot().expand(self.levels, -1, -1)

    @torch.no_grad()
    def learn(self, x: Tensor, indices: Tensor) -> None:
        """One training step from x ``[B, M, D]`` and indices ``[B, M, q]``, q in 1 to Q."""
        indices = _stages.padded(indices, self.levels)
        counts, residuals = ops.level_statistics(x, self.codes(), indices)
        self._learn_from(counts.sum(0, keepdim=True), residuals.sum(0, keepdim=True), x, indices)

    def _levels(self) -> Tensor:
        # every level revives its part of the codes
        codes = torch.arange(self.vectors.shape[1], device=self.vectors.device)
        return (codes % self.levels).unsqueeze(0)
