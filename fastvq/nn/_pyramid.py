# SPDX-License-Identifier: Apache-2.0
"""A codebook whose vectors come from all resolutions of a grid, and the means it sees there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq.nn import start as starts
from fastvq.nn._resampling import resample
from fastvq.nn.codebook import Codebook
from fastvq.nn.learning import Learning
from fastvq.nn.revival import Revival
from fastvq.nn.start import KMeans, Start


class Pyramid(Codebook):
    """Codes ``[1, K, C]`` that start from fields ``[B, C, *spatial]``, seen at all scales."""

    def __init__(
        self,
        scales: Sequence[tuple[int, ...]],
        codebook_size: int,
        dim: int,
        *,
        learning: Learning,
        start: Start,
        revival: Revival | None,
    ) -> None:
        super().__init__(
            1, codebook_size, dim,
            learning=learning, start=start, revival=revival, unit_norm=False,
        )  # fmt: skip
        self.scales = scales

    def _centres(self, x: Tensor, usable: Tensor, start: KMeans) -> tuple[Tensor, Tensor]:
        # what a scale would see if the ones before it had codes for everything they saw
        rest, rows, found = x, [], []
        for size in self.scales:
            seen, some = pooled(rest, usable, size)
            grid = seen.mT.reshape(*x.shape[:2], *size)
            rest = rest - resample(grid, x.shape[2:], "bicubic")
            rows.append(seen)
            found.append(some)
        seen = torch.cat(rows, dim=1).unsqueeze(2)
        return starts.kmeans(seen, torch.cat(found, dim=1), self.vectors, start.iterations)


def pooled(field: Tensor, counted: Tensor, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The means ``[B, M, C]`` of the counted vectors of each cell, and where there are any."""
    part = share(counted, size).to(field.dtype).unsqueeze(1)
    with torch.autocast(field.device.type, enabled=False):
        sums = resample(field * counted.unsqueeze(1), size, "area")
    means = sums / torch.where(part > 0, part, 1)
    return means.flatten(2).mT, part.flatten(1) > 0


def share(marked: Tensor, size: Sequence[int]) -> Tensor:
    """The share of the places of each cell that marked ``[B, *spatial]`` marks, ``[B, *size]``."""
    # in float64 the means of ones are one
    part = resample(marked.unsqueeze(1).double(), size, "area").squeeze(1)
    return part.to(torch.float32)
