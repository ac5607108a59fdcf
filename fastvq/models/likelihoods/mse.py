# SPDX-License-Identifier: Apache-2.0
"""``MSE``: no distribution, a squared error."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvq.models.likelihoods.base import Likelihood

_DISCRETE = "softmax or logistic_mixture"


class MSE(Likelihood):
    """The decoder returns the data itself; the loss is the mean squared error.

    Up to constants the log-likelihood of a Gaussian of fixed variance. It is a density and no
    probability of the levels that data takes: there are no bits per dimension, and no samples.
    """

    def parameter_channels(self, channels: int) -> int:
        """One for each channel of the data."""
        return channels

    def loss(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The mean squared error, 0-d."""
        return F.mse_loss(parameters, x)

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Raises ``TypeError``."""
        raise TypeError(f"nll must be of a discrete likelihood, {_DISCRETE}, got 'mse'")

    def mean(self, parameters: Tensor) -> Tensor:
        """The parameters as they are, not clamped: here data may have any range."""
        return parameters

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Raises ``TypeError``."""
        raise TypeError(f"sample must be of a discrete likelihood, {_DISCRETE}, got 'mse'")
