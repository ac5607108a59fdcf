# SPDX-License-Identifier: Apache-2.0
r"""The specification of the softmax over the codes, in float64 and a bounded chunk at a time.

With logits :math:`l_{nk} = -\beta \lVert x_n - c_k \rVert^2 + b_k` (``euclidean``) or
:math:`\beta \, x_n \cdot c_k + b_k` (``dot``), where :math:`b_k` is 0 or, for a code that is never
taken, :math:`-\infty`,

.. math:: m_n = \max_k l_{nk}, \qquad s_n = \log \sum_k e^{l_{nk} - m_n}, \qquad
          \log p_{nk} = (l_{nk} - m_n) - s_n

The maximum and the rest of the log-partition stay apart: far from every code m is large, and the
sum of the two would round s off. The distance is taken from differences, for the reason given at
the search.

Everything else is a sum over one side of the matrix of probabilities, by row or by code, of

.. math:: p_{nk} \varphi_{nk}, \qquad
          \varphi_{nk} = \alpha_n \log p_{nk} + \gamma_n + w_n t_k + v_n \cdot a_k

alone or times a vector of the other side. With :math:`\varphi = 1` those are the mean of the codes,
with :math:`\varphi = w_n` the mean distribution, and as derivatives by the logits

=================================  ==========================================================
entropy :math:`H_n`                :math:`-p_{nk} (\log p_{nk} + H_n)`
:math:`P_k = \sum_n w_n p_{nk}`    :math:`w_n p_{nk} (t_k - \sum_j p_{nj} t_j)`, t its cotangent
:math:`y_n = \sum_k p_{nk} c_k`    :math:`p_{nk} (v_n \cdot c_k - v_n \cdot y_n)`, v its cotangent
:math:`-\log p_{ni}`               :math:`p_{nk} - [k = i]`
=================================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastvq.ops.entropy._noise import gumbel

# elements of a float64 matrix of pairs, of which a few exist at once, whatever N and K are
_WORKSPACE = 1 << 20


def softmax_rows(
    x: Tensor, codebook: Tensor, bias: Tensor, indices: Tensor | None, metric: str, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """m, s, the entropy and -log p of the code at ``indices``, ``[H, N]`` each.

    x is ``[H, N, D]``, the codebook ``[H, K, D]``, its bias ``[H, K]``.
    """
    maximum, log_sum, entropy, surprisal = (x.new_zeros(x.shape[:2]) for _ in range(4))
    for h, part in _chunks(x, codebook):
        logits = _logits(x[h, part], codebook[h], metric, scale) + bias[h].double()
        top = logits.amax(-1, keepdim=True)
        shifted = logits - top
        total = shifted.exp().sum(-1, keepdim=True).log()
        maximum[h, part] = top.squeeze(-1).to(x.dtype)
        log_sum[h, part] = total.squeeze(-1).to(x.dtype)
        terms = _where_positive((shifted - total).exp(), shifted)
        entropy[h, part] = (total.squeeze(-1) - terms.sum(-1)).to(x.dtype)
        if indices is not None:
            chosen = shifted.gather(-1, indices[h, part].clamp_min(0).unsqueeze(-1))
            surprisal[h, part] = (total - chosen).squeeze(-1).to(x.dtype)
    return maximum, log_sum, entropy, surprisal


def softmax_sums(
    x: Tensor,
    codebook: Tensor,
    bias: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    factors: Tensor,
    code_factor: Tensor | None,
    direction: Tensor | None,
    axes: Tensor | None,
    values: Tensor | None,
    by_code: bool,
    metric: str,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Sums of p phi, and of p phi times the values of the other side.

    The ``factors`` ``[3, H, N]`` are alpha, gamma and w; ``code_factor`` ``[H, K]`` is t, missing
    where w is 0; ``direction`` ``[H, N, D]`` is v, and comes with a as ``axes`` ``[H, K, D]``; the
    values are ``[H, K, C]``, or ``[H, N, C]`` with ``by_code``: one sum over the rows for each code
    instead of one over the codes for each row.

    Returns:
        ``[H, N]`` and ``[H, N, C]``, or ``[H, K]`` and ``[H, K, C]`` with ``by_code``; the latter
        of C = 0 without values.
    """
    owners, others = (codebook, x) if by_code else (x, codebook)
    channels = 0 if values is None else values.shape[-1]
    weights = x.new_zeros(owners.shape[:2])
    totals = x.new_zeros(*owners.shape[:2], channels)
    for h, part in _chunks(owners, others):
        rows, codes = (slice(None), part) if by_code else (part, slice(None))
        logits = _logits(x[h, rows], codebook[h, codes], metric, scale)  # [n, k]
        logits = logits + bias[h, codes].double()
        column = maximum.double()[h, rows].unsqueeze(-1), log_sum.double()[h, rows].unsqueeze(-1)
        logarithm = (logits - column[0]) - column[1]
        alpha, gamma, weight = (f.double()[h, rows].unsqueeze(-1) for f in factors)
        phi = alpha * logarithm + gamma
        if code_factor is not None:
            phi = phi + weight * code_factor[h, codes].double()
        if direction is not None and axes is not None:
            phi = phi + direction[h, rows].double() @ axes[h, codes].double().mT
        terms = _where_positive(logarithm.exp(), phi)
        terms = terms.mT if by_code else terms  # [owners, others]
        weights[h, part] = terms.sum(-1).to(x.dtype)
        if values is not None:
            totals[h, part] = (terms @ values[h].double()).to(x.dtype)
    return weights, totals


def softmax_samples(
    x: Tensor, codebook: Tensor, bias: Tensor, keys: Tensor, metric: str, scale: float
) -> Tensor:
    """The code of the largest logit plus noise, ``[H, N]``; keys ``[2, H, N]`` seed each row's."""
    indices = keys.new_zeros(x.shape[:2])
    codes = torch.arange(codebook.shape[1], device=x.device)
    for h, part in _chunks(x, codebook):
        logits = _logits(x[h, part], codebook[h], metric, scale) + bias[h].double()
        indices[h, part] = (logits + gumbel(keys[:, h, part], codes)).argmax(-1)
    return indices


def _chunks(owners: Tensor, others: Tensor) -> Iterator[tuple[int, slice]]:
    """Heads and ranges of owners whose matrix with all the others fits the work space."""
    step = max(1, _WORKSPACE // max(1, others.shape[1]))
    for h in range(owners.shape[0]):
        for start in range(0, owners.shape[1], step):
            yield h, slice(start, start + step)


def _logits(x: Tensor, codebook: Tensor, metric: str, scale: float) -> Tensor:
    """In float64, infinite where the dtype of x would overflow: that decides which rows count."""
    largest = torch.finfo(x.dtype).max
    x, codebook = x.double(), codebook.double()
    if metric == "dot":
        logits = scale * (x @ codebook.mT)
    else:
        distance = torch.cdist(x, codebook, compute_mode="donot_use_mm_for_euclid_dist")
        logits = -scale * distance.square()
    return torch.where(logits.abs() > largest, logits.sign() * torch.inf, logits)


def _where_positive(chances: Tensor, phi: Tensor) -> Tensor:
    """p phi, 0 where p is: the limit of p log p, and what a code without a chance adds."""
    return torch.where(chances > 0, chances * phi, 0)
