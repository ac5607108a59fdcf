# SPDX-License-Identifier: Apache-2.0
"""What every prior over codes offers, and the cache through which it is sampled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn import functional as F


class Stepper(Protocol):
    """A cache: the logits of one position after another in raster order.

    ``logits`` and ``append`` alternate, once per position. What ``logits`` returns is the caller's
    to keep: a stepper does not write to it again.
    """

    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position given the codes appended so far."""
        ...

    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]``, int64, of that position and moves on."""
        ...


class Prior(nn.Module, ABC):
    """A distribution over grids of codes, one code after another in raster order."""

    @abstractmethod
    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits ``[B, *shape, K]`` of int64 codes ``[B, *shape]``, each given those before it."""

    @abstractmethod
    def stepper(self, batch: int, shape: Sequence[int], labels: Tensor | None = None) -> Stepper:
        """A fresh cache at the first position of ``batch`` grids, for a prior in eval mode."""

    def nll(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Negative log-likelihood of every code in nats, shaped like ``codes``."""
        logits = self(codes, labels)
        losses = F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none")
        return losses.view_as(codes)
