# SPDX-License-Identifier: Apache-2.0
"""What codes that learn by gradient may pay for besides the codebook loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn._distributed import joint_mean
from fastvq.ops._layout import compute_dtype
from fastvq.ops.nearest.api import Metric


class Seen(NamedTuple):
    """What the codes were asked for in one forward.

    Attributes:
        vectors: ``[B, M, H, D]``.
        counted: bool ``[B, M, H]``, where one of them took a code.
        metric: what they were compared by.
        shared: whether the batch is that of all processes.
    """

    vectors: Tensor
    counted: Tensor
    metric: Metric
    shared: bool


@dataclass(frozen=True)
class Orthogonality:
    r"""Codes of unequal directions: the loss grows with the cosines between different codes.

    .. math:: L = \frac{1}{K^2} \lVert \hat C \hat C^\top - I \rVert_F^2
              = \frac{1}{K^2} \Bigl( \lVert \hat C^\top \hat C \rVert_F^2
              - 2 \lVert \hat C \rVert_F^2 + K \Bigr)

    with the unit vectors of the codes as rows, the mean over heads or levels. The second form needs
    D x D memory and not K x K, so that all codes take part in every step, however many there are.

    Args:
        weight: of this loss in that of the quantizer; 10 in the paper.

    Source: 2112.00384, section 3.2, equation 2.
    """

    weight: float = 10.0

    def __post_init__(self) -> None:
        _checks.fraction("weight", self.weight, high=float("inf"))

    def __call__(self, codes: Tensor, seen: Callable[[], Seen]) -> Tensor:
        """The loss of codes ``[H, K, D]``, before its weight, whatever was seen."""
        # cosines in 16 bits would sum errors of K^2 terms
        with torch.autocast(codes.device.type, enabled=False):
            unit = nn.functional.normalize(codes.to(compute_dtype(codes)), dim=-1)
            num_codes, channels = unit.shape[-2:]
            if num_codes <= channels:
                eye = torch.eye(num_codes, dtype=unit.dtype, device=unit.device)
                total = (unit @ unit.mT - eye).square().sum()
            else:
                gram = (unit.mT @ unit).square().sum()
                total = gram - 2 * unit.square().sum() + num_codes * unit.shape[0]
        return total / (unit.shape[0] * num_codes**2)


@dataclass(frozen=True)
class Diversity:
    r"""All codes in use: the loss is minus the entropy of the batch's mean soft assignment.

    .. math:: L = -H(\bar p) = \sum_k \bar p_k \log \bar p_k, \qquad
              \bar p_k = \frac1N \sum_n p_{nk}, \qquad
              p_{nk} \propto e^{-\beta d(x_n, c_k)}

    in nats, the mean over heads or levels; at its least, :math:`-\log K`, all codes have an equal
    part in the soft assignment, which vectors in doubt between all of them satisfy as well.
    d is what the quantizer compares by: the squared distance, one minus the cosine, or minus the
    dot product. It takes O(N + K) memory. The vectors get a gradient as well as the codes, so that
    an encoder spreads what it gives; the codes of a level get none from the levels after it.

    Args:
        weight: of this loss in that of the quantizer.
        inverse_temperature: :math:`\beta`. Where it times the gap between the two nearest codes is
            far above 1, there is no gradient left.

    Note:
        In training with several processes the batch is that of all. vector-quantize-pytorch's
        ``codebook_diversity_loss`` is this under its cosine similarity, for vectors ``[N, D]``;
        otherwise it takes distances that are not squared, and the entropy at each position of a
        sequence over the samples alone.

    Source: 2310.05737 (MAGVIT-v2), section 3.1, the second term of the entropy penalty; 2006.11477
    (wav2vec 2.0), section 3.2, equation 4.
    """

    weight: float = 0.1
    inverse_temperature: float = 100.0

    def __post_init__(self) -> None:
        _checks.fraction("weight", self.weight, high=float("inf"))
        _checks.fraction("inverse_temperature", self.inverse_temperature, high=float("inf"))
        if self.inverse_temperature == 0:
            raise ValueError("inverse_temperature must be above 0, got 0")

    def __call__(self, codes: Tensor, seen: Callable[[], Seen]) -> Tensor:
        """The loss of codes ``[H, K, D]`` that were asked for what was seen, before its weight."""
        batch = seen()
        found = ops.entropy(
            batch.vectors,
            codes,
            metric=batch.metric,
            inverse_temperature=self.inverse_temperature,
            counted=batch.counted,
        )
        mean = found.probabilities  # [H, K]
        mean = joint_mean(mean, found.counted) if batch.shared else mean
        return -ops.distribution_entropy(mean).mean()
