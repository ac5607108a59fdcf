# SPDX-License-Identifier: Apache-2.0
"""What codes that learn by gradient may pay for besides the codebook loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastvq import _checks
from fastvq.ops._layout import compute_dtype


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

    def __call__(self, codes: Tensor) -> Tensor:
        """The loss of codes ``[H, K, D]``, before its weight."""
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
