# SPDX-License-Identifier: Apache-2.0
"""No cache: the whole prior at every position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq.priors.base import Context, Prior


class RecomputeStepper:
    """A :class:`Stepper` without a cache: one full forward of the prior for every position.

    The specification that caches are tested against, and their rival in benchmarks.
    """

    def __init__(
        self,
        prior: Prior,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> None:
        device = next(prior.parameters()).device
        self._prior, self._labels, self._context = prior, labels, context
        self._codes = torch.zeros(batch, *shape, dtype=torch.int64, device=device)
        self._position = 0

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position."""
        logits: Tensor = self._prior(self._codes, self._labels, self._context)  # [B, *shape, K]
        return logits.flatten(1, -2)[:, self._position]

    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]`` of the position just asked for."""
        self._codes.view(len(codes), -1)[:, self._position] = codes
        self._position += 1
