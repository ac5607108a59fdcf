# SPDX-License-Identifier: Apache-2.0
"""``beam_search``: better codes of residual quantization than those of one level after another."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.ops.residual.api import residual

# distances that are held at once: 32 MiB of float64
_WORKSPACE = 1 << 22


@torch.no_grad()
def beam_search(x: Tensor, codebooks: Tensor, *, beam: int = 5) -> Tensor:
    r"""Codes whose sum is near x, from the best B partial sums of every level.

    Level q extends each of the B sums :math:`s` kept so far by each of its K codes and keeps the B
    of smallest :math:`\lVert x - s - c_{q,k} \rVert^2` among all B K; the last level keeps one.
    With B = 1 this is :func:`residual`, with B >= K^(Q-1) the best sum there is.

    Args:
        x: vectors ``[..., D]``; float32, float16, bfloat16 or float64; any strided view.
        codebooks: ``[Q, K, D]``.
        beam: B, the number of sums that are kept.

    Returns:
        Indices int64 ``[..., Q]``. Of no vector is the error larger than that of
        :func:`residual`, whose codes stand for election at the end: a beam alone may lose what one
        level after another finds.

    Raises:
        TypeError, ValueError: an input or the beam does not fit; the text says what was expected.

    Note:
        In float64. Deterministic on one device; which of bit-equal sums is kept is left to
        ``torch.topk``. A vector holding NaN or Inf gets index 0 at every level, and a code holding
        one is never chosen. Time O(N B K D Q); the memory on top of the result is bounded, or
        O(B K) if that is more.

    Source: Babenko and Lempitsky, Additive Quantization for Extreme Vector Compression, CVPR 2014,
    section 3.2; Liu et al., 1501.01070.

    Example:
        >>> import torch, fastvq
        >>> codebooks = torch.tensor([[[0.0], [4.0]], [[-3.0], [0.0]]])
        >>> x = torch.tensor([[1.2]])
        >>> fastvq.ops.residual(x, codebooks).indices.tolist()
        [[0, 1]]
        >>> fastvq.ops.beam_search(x, codebooks, beam=2).tolist()
        [[1, 0]]
    """
    _checks.positive("beam", beam)
    greedy = residual(x, codebooks).indices
    if beam == 1:
        return greedy
    levels, num_codes, channels = codebooks.shape
    good = torch.isfinite(codebooks).all(-1)
    codes = torch.where(good.unsqueeze(-1), codebooks, 0).double()
    squares = torch.where(good, codes.square().sum(-1), torch.inf)  # [Q, K]
    rows = x.reshape(-1, channels)
    size = max(1, _WORKSPACE // (beam * num_codes))
    parts = zip(rows.split(size), greedy.reshape(-1, levels).split(size), strict=True)
    found = [_search(part.double(), codes, squares, beam, path) for part, path in parts]
    return torch.cat(found).reshape(greedy.shape)


def _search(x: Tensor, codes: Tensor, squares: Tensor, beam: int, greedy: Tensor) -> Tensor:
    """The codes ``[N, Q]`` of x ``[N, D]``, ``greedy`` where they are no better than that."""
    num_codes = codes.shape[1]
    rest = x.unsqueeze(1)  # [N, B, D]
    paths = greedy.new_empty(len(x), 1, 0)
    for level, square in zip(codes, squares, strict=True):
        own = rest.square().sum(-1, keepdim=True)
        distances = (own - 2 * rest @ level.t() + square).flatten(1)  # [N, B * K]
        kept = distances.topk(min(beam, distances.shape[1]), largest=False).indices
        kept = kept.sort(-1).values  # the order of topk among equals is its own
        sums = (kept // num_codes).unsqueeze(-1)
        code = kept % num_codes
        rest = rest.gather(1, sums.expand(-1, -1, x.shape[1])) - level[code]
        before = paths.gather(1, sums.expand(-1, -1, paths.shape[2]))
        paths = torch.cat([before, code.unsqueeze(-1)], -1)
    errors = rest.square().sum(-1)
    best = errors.min(-1)
    path = paths.gather(1, best.indices.view(-1, 1, 1).expand(-1, 1, len(codes))).squeeze(1)
    total = sum(level[index] for level, index in zip(codes, greedy.unbind(-1), strict=True))
    better = best.values < (x - total).square().sum(-1)  # never where one of them is NaN
    return torch.where(better.unsqueeze(-1), path, greedy)
