# SPDX-License-Identifier: Apache-2.0
"""What every VQ-VAE is whose decoder answers at once: a loss, a mean, a bound in bits."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, NamedTuple

import torch
from torch import Tensor

from fastvq.models.base import Bits, Coder, Indices
from fastvq.models.likelihoods import LikelihoodConfig, make_likelihood
from fastvq.models.networks import NetworkConfig
from fastvq.models.quantizers import QuantizerConfig


@dataclass(frozen=True, kw_only=True)
class AutoEncoderConfig(NetworkConfig, QuantizerConfig, LikelihoodConfig, ABC):
    """What the configs of all VQ-VAEs share; plain values, so that JSON holds them."""

    def __post_init__(self) -> None:
        NetworkConfig.__post_init__(self)
        QuantizerConfig.__post_init__(self)
        LikelihoodConfig.__post_init__(self)

    @property
    @abstractmethod
    def stride(self) -> tuple[int, ...]:
        """What the size of the data must be a multiple of, in every axis."""


class AutoEncoderOutput(NamedTuple, Generic[Indices]):
    """What one pass of a VQ-VAE returns.

    Attributes:
        reconstruction: ``[B, C, ...]``, the mean of the decoder's distribution. No gradient flows
            through it: ``loss``, ``reconstruction_loss`` and ``parameters`` have one.
        indices: int64, what ``encode`` returns.
        loss: 0-d, ``reconstruction_loss + quantizer_loss``; what training minimises.
        reconstruction_loss: 0-d: the mean squared error, or for a discrete likelihood the negative
            log-likelihood in nats, averaged over all values of the data.
        quantizer_loss: 0-d, the weighted losses of the quantizers.
        parameters: ``[B, P, ...]``, the decoder's output, as the likelihood takes it.
    """

    reconstruction: Tensor
    indices: Indices
    loss: Tensor
    reconstruction_loss: Tensor
    quantizer_loss: Tensor
    parameters: Tensor


class Pass(NamedTuple):
    """The decoder's output, the grids from the top down, and the sum of the quantizers' losses."""

    parameters: Tensor
    grids: tuple[Tensor, ...]
    quantizer_loss: Tensor


class AutoEncoder(Coder[Indices]):
    """Base of `VQVAE` and `VQVAE2`: all of a model but its networks.

    Beside the uniform `encode_grids` of every `Coder` there is `decode_grids`.
    """

    def __init__(self, config: AutoEncoderConfig) -> None:
        super().__init__(config)
        self.likelihood = make_likelihood(config)

    @abstractmethod
    def decode(self, indices: Indices) -> Tensor:
        """The data that codes stand for."""

    @abstractmethod
    def _pass(self, x: Tensor) -> Pass:
        """One pass of checked data, in which the codebooks learn if in training."""

    @abstractmethod
    def _decode(self, grids: tuple[Tensor, ...]) -> Tensor:
        """The decoder's output for checked grids."""

    @abstractmethod
    def _indices(self, grids: tuple[Tensor, ...]) -> Indices:
        """The grids as ``encode`` returns them."""

    def forward(self, x: Tensor) -> AutoEncoderOutput[Indices]:
        """One pass; in training mode it also moves the codebooks that learn by moving average.

        Args:
            x: ``[B, C, ...]`` floating, ``spatial_dims`` axes after the channels; in [0, 1] and of
                the config's levels where the likelihood is discrete.

        Raises:
            ValueError: wrong rank or channels, an axis that is no multiple of the stride, or (on
                the CPU) a value that is none of the levels.
        """
        self._check(x)
        parameters, grids, quantizer_loss = self._pass(x)
        reconstruction_loss = self.likelihood.loss(parameters, x)
        loss = reconstruction_loss + quantizer_loss
        with torch.no_grad():
            reconstruction = self.likelihood.mean(parameters)
        return AutoEncoderOutput(
            reconstruction.detach(),
            self._indices(grids),
            loss,
            reconstruction_loss,
            quantizer_loss,
            parameters,
        )

    def decode_grids(self, grids: tuple[Tensor, ...]) -> Tensor:
        """The data that grids stand for: the mean of `distribution`, ``[B, C, ...]``."""
        return self.likelihood.mean(self.distribution(grids))

    def distribution(self, grids: tuple[Tensor, ...]) -> Tensor:
        """The parameters ``[B, P, ...]`` of the data's distribution given grids, the top first.

        Raises:
            TypeError: indices that are not integers.
            ValueError: another number of grids, dimensions or sizes that do not fit together.
            IndexError: (on the CPU) an index out of range.
        """
        self._check_grids(grids)
        return self._decode(grids)

    def reconstruct(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``: what the codes keep of ``x``."""
        return self.decode_grids(self.encode_grids(x))

    @torch.no_grad()
    def bits_per_dim(self, x: Tensor, code_bits: Tensor | float | None = None) -> Bits:
        r"""Bits per value of the data, a bound from above on its negative log-likelihood.

        .. math:: -\log p(x) = -\log \sum_z p(x \mid z) p(z) \le -\log p(x \mid z(x)) - \log p(z(x))

        with z(x) the codes of ``encode``: one term of the sum. Changes nothing, in training mode
        too. Mean squared errors give no bits.

        Args:
            x: as for `forward`.
            code_bits: ``-log2 p(z(x))`` of all codes of each example, ``[B]`` or one number for
                all, as a prior measures it. By default nominal: that of the uniform prior of
                training, log2 K for every code.

        Raises:
            TypeError: the likelihood is not discrete.
            ValueError: as for `forward`, or code bits of another shape.

        Source: 1711.00937, section 2 (the paragraph of the bound, after equation 1), 4.1.
        """
        grids = self.encode_grids(x)
        return self._bits(self.likelihood.nll(self._decode(grids), x), x, code_bits)
