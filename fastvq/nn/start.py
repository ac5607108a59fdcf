# SPDX-License-Identifier: Apache-2.0
"""How a codebook starts: from the data, at random, or from given vectors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastvq import _checks, ops

# Lloyd's algorithm gains nothing visible from more rows than this for each code
_ROWS_PER_CODE = 256


@dataclass(frozen=True)
class KMeans:
    """Codes start as the k-means centres of the first training batch that has a usable row.

    Lloyd's algorithm from K distinct random rows, at most 256 rows a code; a centre that loses all
    its rows moves to the row that is farthest from its own centre. A batch of fewer than K rows
    gives each row a code and draws the other codes from a Gaussian with the batch's mean and
    deviations, so that no two codes are equal. Never runs in eval. Random numbers come from torch's
    generator of the device. With several processes the first one's centres serve all.

    Args:
        iterations: Lloyd iterations.

    Source: Lancucki et al., 2005.08520 (data-dependent start).
    """

    iterations: int = 10

    def __post_init__(self) -> None:
        _checks.positive("iterations", self.iterations)


@dataclass(frozen=True)
class Uniform:
    """Codes start uniform in [-bound, bound]; the bound is 1 / K unless given."""

    bound: float | None = None

    def __post_init__(self) -> None:
        if self.bound is not None:
            _checks.fraction("bound", self.bound, high=float("inf"))


@dataclass(frozen=True, eq=False)
class Given:
    """Codes start as the vectors ``[K, D]``, or ``[H, K, D]`` with heads."""

    vectors: Tensor

    def __post_init__(self) -> None:
        _checks.floating("vectors", self.vectors)
        if not bool(torch.isfinite(self.vectors).all()):
            raise ValueError("vectors must be finite, got a NaN or an Inf")


Start = KMeans | Uniform | Given


def initial(start: Start, heads: int, codebook_size: int, dim: int) -> Tensor:
    """The codebook ``[H, K, D]`` at construction; k-means replaces it at the first batch."""
    if isinstance(start, Given):
        shape = [heads, codebook_size, dim]
        vectors = start.vectors if start.vectors.ndim == 3 else start.vectors.unsqueeze(0)
        if list(vectors.shape) != shape:
            raise ValueError(
                f"vectors must be {shape if heads > 1 else shape[1:]}, "
                f"got {_checks.shape(start.vectors)}"
            )
        return vectors.detach().clone().float()
    bound = start.bound if isinstance(start, Uniform) else None
    bound = 1 / codebook_size if bound is None else bound
    return torch.empty(heads, codebook_size, dim).uniform_(-bound, bound)


# an op of its own, so that a graph holds one node where Lloyd's loop would unroll, and so that
# choosing the usable rows may look at the data
@torch.library.custom_op("fastvq::kmeans", mutates_args=())
def kmeans(x: Tensor, usable: Tensor, codebook: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Centres ``[H, K, D]`` of the usable rows ``[B, M]`` of x ``[B, M, H, D]``.

    The second result, 0-d and bool, says whether each head had a row to start from; where one had
    none its codes come back unchanged.
    """
    centres = codebook.clone()
    found = True
    for h in range(codebook.shape[0]):
        rows = x[:, :, h][usable].to(codebook.dtype)  # [n, D]
        rows = rows[torch.isfinite(rows).all(-1)]
        found = found and len(rows) > 0
        if len(rows):
            centres[h] = _lloyd(rows, codebook.shape[1], iterations)
    return centres, torch.tensor(found, device=codebook.device)


@kmeans.register_fake
def _fake(x: Tensor, usable: Tensor, codebook: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(codebook), codebook.new_empty((), dtype=torch.bool)


def residual_kmeans(
    x: Tensor, usable: Tensor, codebooks: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """As :func:`kmeans`, of codebooks ``[Q, K, D]`` that each see what those before it left over.

    x is ``[B, M, D]``, the usable rows ``[B, M]``.
    """
    rest = x.to(codebooks.dtype)
    centres, found = [], []
    for codes in codebooks:
        own, some = kmeans(rest.unsqueeze(2), usable, codes.unsqueeze(0), iterations)
        # levels are searched in turn: the next one sees what this one leaves over
        rest = rest - torch.nn.functional.embedding(ops.nearest(rest, own[0]).indices, own[0])
        centres.append(own)
        found.append(some)
    return torch.cat(centres), torch.stack(found).all()


def _lloyd(rows: Tensor, codebook_size: int, iterations: int) -> Tensor:
    order = torch.randperm(len(rows), device=rows.device)[: codebook_size * _ROWS_PER_CODE]
    rows = rows[order]
    if len(rows) < codebook_size:
        missing = codebook_size - len(rows)
        deviation = rows.std(0, correction=0)
        # equal rows deviate by nothing; a hundredth of their size keeps the codes apart
        size = rows.square().mean().sqrt()
        deviation = torch.where(deviation > 0, deviation, 0.01 * torch.where(size > 0, size, 1))
        noise = torch.randn(missing, rows.shape[1], dtype=rows.dtype, device=rows.device)
        return torch.cat([rows, rows.mean(0) + deviation * noise])
    centres = rows[:codebook_size].clone()
    for _ in range(iterations):
        indices, distances = ops.nearest(rows, centres)
        counts, residuals = ops.statistics(rows, indices, codebook_size, codebook=centres)
        centres = centres + residuals / counts.clamp_min(1).unsqueeze(-1)
        farthest = rows[distances.topk(codebook_size).indices]  # [K, D]
        # the e-th empty centre takes the e-th farthest row
        empty = counts == 0
        place = (empty.cumsum(0) - 1).clamp_min(0)
        centres = torch.where(empty.unsqueeze(-1), farthest[place], centres)
    return centres
