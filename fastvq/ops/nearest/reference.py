# SPDX-License-Identifier: Apache-2.0
r"""The specification of the search, in float64 and by direct differences.

Why not :math:`\lVert x \rVert^2 + \lVert c \rVert^2 - 2 x \cdot c`: its rounding error is relative
to the norms, not to the distance, so vectors far from the origin get wrong codes. The direct form
:math:`\sum_d (x_d - c_d)^2` is a sum of non-negative terms, whose relative error stays below
:math:`(D + 3) u`; float32 inputs are moreover exact in float64, and so are all but the most
lopsided of their differences. With :math:`u = 2^{-53}` the code it picks is nearest for every
practical purpose, at any offset or scale that float32 holds.

The cosine distance is taken the same way: for unit vectors
:math:`1 - \hat x \cdot \hat c = \tfrac12 \lVert \hat x - \hat c \rVert^2`, which does not cancel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq.ops._layout import compute_dtype

# elements of float64 work space: 8 MiB, whatever N and K are
_WORKSPACE = 1 << 20


def nearest(x: Tensor, codebook: Tensor, metric: str, precision: str) -> tuple[Tensor, Tensor]:
    """Indices and distances ``[B, M, H]`` of x ``[B, M, H, D]`` in codebook ``[H, K, D]``.

    Both precisions are the exact one.
    """
    indices = x.new_empty(x.shape[:-1], dtype=torch.int64)
    distances = x.new_empty(x.shape[:-1], dtype=compute_dtype(x, codebook))
    images, rows, heads, channels = x.shape
    codes = codebook.shape[1]
    step = max(1, _WORKSPACE // (codes * channels if metric == "dot" else codes + channels))
    image_step = max(1, step // max(1, rows))
    for h in range(heads):
        # contiguous, for the layout decides how a sum rounds, and equal codes must round alike
        wide = codebook[h].double().contiguous()
        for b in range(0, images, image_step):
            for m in range(0, rows, step):
                chunk = x[b : b + image_step, m : m + step, h].double()  # [b, m, D]
                index, distance = _search(chunk.flatten(0, 1), wide, metric)
                shape = chunk.shape[:2]
                indices[b : b + image_step, m : m + step, h] = index.view(shape)
                distances[b : b + image_step, m : m + step, h] = distance.view(shape)
    return indices, distances


def _search(x: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """One chunk: x ``[n, D]``, codebook ``[K, D]``, both float64 -> index, distance ``[n]``."""
    scores = _SCORES[metric](x, codebook)  # [n, K]
    # argmin prefers NaN to any number, so what is not a number must rank last
    scores = torch.where(torch.isfinite(codebook).all(-1), scores, torch.inf)
    scores = scores.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    index = scores.argmin(-1)  # the first of equal minima
    distance = scores.gather(-1, index.unsqueeze(-1)).squeeze(-1) ** _POWERS[metric]
    finite = torch.isfinite(x).all(-1) & torch.isfinite(codebook).all(-1).any()
    return torch.where(finite, index, 0), torch.where(finite, distance, torch.nan)


def _euclidean(x: Tensor, codebook: Tensor) -> Tensor:
    """The distances, not squared: the square root keeps their order."""
    return torch.cdist(x, codebook, compute_mode="donot_use_mm_for_euclid_dist")


def _cosine(x: Tensor, codebook: Tensor) -> Tensor:
    x, x_zero = _unit(x)
    codebook, codebook_zero = _unit(codebook)
    distance = _euclidean(x, codebook).square() / 2
    return torch.where(x_zero.unsqueeze(-1) | codebook_zero, 1.0, distance)


def _dot(x: Tensor, codebook: Tensor) -> Tensor:
    # not a matrix product: its blocking may round equal codes differently and break their tie
    return -(x.unsqueeze(-2) * codebook).sum(-1)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors, and which vectors were zero; scaled first so that no square underflows."""
    largest = x.abs().amax(-1, keepdim=True)
    zero = largest == 0
    x = x / torch.where(zero, 1.0, largest)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(zero, 1.0, norm), zero.squeeze(-1)


# scores need only the order of the distances; the power makes distances of them
_SCORES = {"euclidean": _euclidean, "cosine": _cosine, "dot": _dot}
_POWERS = {"euclidean": 2, "cosine": 1, "dot": 1}
