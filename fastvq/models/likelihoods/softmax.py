# SPDX-License-Identifier: Apache-2.0
"""``Softmax``: a probability for each level."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvq import _checks
from fastvq.models.likelihoods import base


class Softmax(base.Discrete):
    """A categorical distribution of every value by itself; a decoder returns logits.

    Channel ``c * levels + k`` of the parameters is the logit of level k in channel c.

    Args:
        levels: how many values the data takes.

    Source: the CIFAR-10 model of 1711.00937, section 4.1, with 256 levels.
    """

    def parameter_channels(self, channels: int) -> int:
        """``levels`` for each channel of the data."""
        return channels * self.levels

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Nats per value, ``[B]``."""
        base.check_match(self, parameters, x)
        losses = F.cross_entropy(
            self._logits(parameters).transpose(1, 2), self.digits(x), reduction="none"
        )
        return losses.flatten(1).mean(1)

    def mean(self, parameters: Tensor) -> Tensor:
        """``sum_k p_k k / (levels - 1)``, in [0, 1]."""
        probabilities = self._logits(parameters).softmax(2).movedim(2, -1)  # [B, C, ..., levels]
        values = torch.linspace(
            0, 1, self.levels, dtype=probabilities.dtype, device=probabilities.device
        )
        with torch.autocast(probabilities.device.type, enabled=False):
            return (probabilities @ values).clamp(0, 1)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The first level whose cumulative probability exceeds a uniform number."""
        # float64, for a sum of 65536 float32 would be off by more than the rare levels have
        cumulative = self._logits(parameters).double().softmax(2).movedim(2, -1).cumsum(-1)
        uniform = base.uniform(cumulative[..., :1], generator) * cumulative[..., -1:]
        drawn = torch.searchsorted(cumulative.contiguous(), uniform, right=True)[..., 0]
        return drawn.to(base.wide(parameters)) / (self.levels - 1)

    def _logits(self, parameters: Tensor) -> Tensor:
        if parameters.shape[1] % self.levels:
            raise ValueError(
                f"parameters must be [B, C * {self.levels}, ...], got {_checks.shape(parameters)}"
            )
        return parameters.to(base.wide(parameters)).unflatten(1, (-1, self.levels))
