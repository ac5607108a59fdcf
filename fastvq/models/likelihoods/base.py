# SPDX-License-Identifier: Apache-2.0
"""What a likelihood offers, and what the discrete ones share."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fastvq import _checks

_MOST_LEVELS = 1 << 16


class Likelihood(nn.Module, ABC):
    """A distribution of data given the output of a decoder. Holds no weights."""

    @abstractmethod
    def parameter_channels(self, channels: int) -> int:
        """P, the channels that a decoder of data with ``channels`` channels must return."""

    @abstractmethod
    def loss(self, parameters: Tensor, x: Tensor) -> Tensor:
        """0-d, what training minimises, averaged over the values of ``x``."""

    @abstractmethod
    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Nats per value of each example, ``[B]``: ``-log p(x | parameters)`` over their number.

        Raises:
            TypeError: the likelihood is a density and has none.
            ValueError: (on the CPU) a value of ``x`` is not one of the levels.
        """

    @abstractmethod
    def mean(self, parameters: Tensor) -> Tensor:
        """The expected data, in the shape of the data."""

    @abstractmethod
    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Data drawn from the distribution, in the shape of the data."""


class Discrete(Likelihood):
    """A probability for each of the levels that data takes."""

    def __init__(self, levels: int) -> None:
        super().__init__()
        _checks.positive("levels", levels)
        if not 2 <= levels <= _MOST_LEVELS:
            raise ValueError(f"levels must be in [2, {_MOST_LEVELS}], got {levels}")
        self.levels = levels

    def loss(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The mean of `nll`, 0-d."""
        return self.nll(parameters, x).mean()

    def digits(self, x: Tensor) -> Tensor:
        """The level of every value, int64 ``[B, C, ...]`` in [0, levels).

        Raises:
            TypeError: a dtype too narrow to tell the levels apart.
            ValueError: a value that is none of them. On the CPU and outside compilation only: a GPU
                would have to wait for the answer, and a graph cannot branch on it.
        """
        _checks.floating("x", x)
        peak = self.levels - 1
        rounding = peak * torch.finfo(x.dtype).eps / 2
        if rounding > 0.25:
            raise TypeError(
                f"x must be float32 or float64 for {self.levels} levels, "
                f"got {_checks.dtype_name(x)}"
            )
        scaled = x.detach().to(wide(x)) * peak
        nearest = scaled.round()
        if x.device.type == "cpu" and not torch.compiler.is_compiling():
            inside = (nearest >= 0) & (nearest <= peak)
            # twice the rounding of the input: the product is rounded as well
            fits = inside & ((scaled - nearest).abs() <= 1e-4 + 2 * rounding)
            if not bool(fits.all()):
                worst = float(x[~fits].flatten()[0])
                raise ValueError(f"x must hold multiples of 1/{peak} in [0, 1], got {worst:g}")
        return nearest.long()

    def extra_repr(self) -> str:
        """The arguments."""
        return f"levels={self.levels}"


def check_match(likelihood: Likelihood, parameters: Tensor, x: Tensor) -> None:
    """Raises unless the parameters are those of data like ``x``."""
    wanted = [x.shape[0], likelihood.parameter_channels(x.shape[1]), *x.shape[2:]]
    if _checks.shape(parameters) != wanted:
        raise ValueError(
            f"parameters must be {wanted} for x of shape {_checks.shape(x)}, "
            f"got {_checks.shape(parameters)}"
        )


def uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers in [0, 1), float64 as priors draw them, in the shape of ``like``."""
    device = torch.device("cpu") if generator is None else generator.device
    drawn = torch.rand(like.shape, dtype=torch.float64, generator=generator, device=device)
    return drawn.to(like.device)


def wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which likelihoods are computed."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
