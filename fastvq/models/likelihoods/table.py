# SPDX-License-Identifier: Apache-2.0
"""The likelihoods by name."""

from __future__ import annotations

from dataclasses import dataclass

from fastvq import _checks
from fastvq.models.likelihoods.base import Likelihood
from fastvq.models.likelihoods.logistic_mixture import LogisticMixture
from fastvq.models.likelihoods.mse import MSE
from fastvq.models.likelihoods.softmax import Softmax

LIKELIHOODS = ("mse", "softmax", "logistic_mixture")


@dataclass(frozen=True, kw_only=True)
class LikelihoodConfig:
    """What the decoder's output means.

    Attributes:
        likelihood: ``"mse"``, ``"softmax"`` or ``"logistic_mixture"``; see `MSE`, `Softmax` and
            `LogisticMixture`.
        levels: how many values the data takes, 2 to 65536; 256 unless given. Not for ``"mse"``.
        mixtures: components of ``"logistic_mixture"``, 10 unless given; for no other.
    """

    likelihood: str = "mse"
    levels: int | None = None
    mixtures: int | None = None

    def __post_init__(self) -> None:
        _checks.one_of("likelihood", self.likelihood, LIKELIHOODS)
        if self.likelihood == "mse" and self.levels is not None:
            raise ValueError(f"levels must be None for likelihood 'mse', got {self.levels}")
        if self.likelihood != "logistic_mixture" and self.mixtures is not None:
            raise ValueError(
                f"mixtures must be None for likelihood {self.likelihood!r}, got {self.mixtures}"
            )
        make_likelihood(self)


def make_likelihood(config: LikelihoodConfig) -> Likelihood:
    """The likelihood that a config names."""
    levels = 256 if config.levels is None else config.levels
    if config.likelihood == "mse":
        return MSE()
    if config.likelihood == "softmax":
        return Softmax(levels)
    return LogisticMixture(levels, 10 if config.mixtures is None else config.mixtures)
