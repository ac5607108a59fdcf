# SPDX-License-Identifier: Apache-2.0
"""``LogisticMixture``: logistics, cut into levels."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvq import _checks
from fastvq.models.likelihoods import base

# the log-scale of a logistic, in units of the data's range of 2: the limit of PixelCNN++, at which
# a logistic is an eighth of one of 256 levels wide. More levels may ask for narrower ones
_LOWEST_LOG_SCALE = -7.0
# so wide a logistic leaves nothing to the levels inside; wider ones would cost digits
_HIGHEST_LOG_SCALE = 7.0
# uniform numbers are multiples of 2^-53; the logit of 0 would be infinite
_SMALLEST_UNIFORM = 2.0**-54


class LogisticMixture(base.Discrete):
    r"""A mixture of logistics, cut into the levels.

    With values scaled to :math:`y \in [-1, 1]`, half the distance of two levels
    :math:`h = 1 / (\text{levels} - 1)` and the logistic sigmoid :math:`\sigma`,

    .. math:: p(y) = \sum_k \pi_k \left[ \sigma\left(\frac{y + h - \mu_k}{s_k}\right)
                     - \sigma\left(\frac{y - h - \mu_k}{s_k}\right) \right]

    where the lowest level takes all below it and the highest all above, so that the probabilities
    sum to one. One mixture serves all channels of a position, which are independent given its
    component; with three channels (RGB) the mean of green is linear in red, that of blue in red and
    green: :math:`\mu_g + \alpha r` and :math:`\mu_b + \beta r + \gamma g`.

    It is computed as :math:`\log \sigma(b) + \log \sigma(-a) + \log(1 - e^{a - b})`, which is the
    logarithm of :math:`\sigma(b) - \sigma(a)` without the difference: finite, with the right
    gradient, however far the value is from the mean.

    The parameters of a position are K logits of the components, then K means for each channel, K
    log-scales for each channel, and of three channels K each of :math:`\alpha, \beta, \gamma`,
    before their tanh.

    Args:
        levels: how many values the data takes.
        mixtures: K, the components.

    Source: PixelCNN++, 1701.05517, sections 2.1 and 2.2.
    """

    def __init__(self, levels: int, mixtures: int) -> None:
        super().__init__(levels)
        _checks.positive("mixtures", mixtures)
        self.mixtures = mixtures
        # so narrow that one level can have all of it, for any number of levels
        self.lowest = _LOWEST_LOG_SCALE - max(0.0, math.log((levels - 1) / 255))

    def parameter_channels(self, channels: int) -> int:
        """``(1 + 2 C) K``, and ``10 K`` for three channels."""
        return self.mixtures * (1 + 2 * channels + (3 if channels == 3 else 0))

    def nll(self, parameters: Tensor, x: Tensor) -> Tensor:
        """Nats per value, ``[B]``."""
        base.check_match(self, parameters, x)
        mixture = self._split(parameters)
        digits = self.digits(x)
        y = self._scaled(digits, mixture.means.dtype)
        given = mixture.log_weights + self._component_log_probability(mixture, y, digits).sum(2)
        losses = -given.logsumexp(1)  # [B, ...]
        return losses.flatten(1).mean(1) / x.shape[1]

    def mean(self, parameters: Tensor) -> Tensor:
        """The mean of the mixture clipped to the range: within half a level of that of the levels.

        In the means of green and blue each component has its own expected red and green.
        """
        mixture = self._split(parameters)
        scales = mixture.log_scales.exp()
        expected: list[Tensor] = []
        for channel in range(mixture.means.shape[2]):
            s = scales[:, :, channel]
            m = mixture.channel_means(channel, expected)
            # the integral of the survival function over the range
            clipped = s * (F.softplus((m + 1) / s) - F.softplus((m - 1) / s)) - 1
            expected.append(clipped)
        weights = mixture.log_weights.exp()
        means = torch.stack([(weights * one).sum(1) for one in expected], 1)
        return ((means + 1) / 2).clamp(0, 1)

    def sample(self, parameters: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws the component, then one channel after another."""
        mixture = self._split(parameters)
        cumulative = mixture.log_weights.double().exp().movedim(1, -1).cumsum(-1)
        uniform = base.uniform(cumulative[..., :1], generator) * cumulative[..., -1:]
        chosen = torch.searchsorted(cumulative.contiguous(), uniform, right=True).movedim(-1, 1)
        uniform = base.uniform(mixture.means[:, 0], generator).clamp_min(_SMALLEST_UNIFORM)
        noise = uniform.logit().to(mixture.means.dtype)  # [B, C, ...]
        drawn: list[Tensor] = []
        found: list[Tensor] = []
        for channel in range(noise.shape[1]):
            m = mixture.channel_means(channel, drawn).gather(1, chosen)[:, 0]
            s = mixture.log_scales[:, :, channel].gather(1, chosen)[:, 0].exp()
            value = m + s * noise[:, channel]
            # what follows is conditioned on the level, as in training
            digit = ((value + 1) / 2 * (self.levels - 1)).round().clamp(0, self.levels - 1)
            drawn.append(self._scaled(digit, value.dtype).unsqueeze(1))
            found.append(digit / (self.levels - 1))
        return torch.stack(found, 1)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{super().extra_repr()}, mixtures={self.mixtures}"

    def _component_log_probability(self, mixture: _Mixture, y: Tensor, digits: Tensor) -> Tensor:
        """``log p(y | component)``, ``[B, K, C, ...]``."""
        seen = [y[:, None, channel] for channel in range(y.shape[1])]
        means = torch.stack([mixture.channel_means(c, seen) for c in range(len(seen))], 2)
        inverse = (-mixture.log_scales).exp()
        centred = y.unsqueeze(1) - means
        half = 1 / (self.levels - 1)
        lowest = (digits == 0).unsqueeze(1)
        highest = (digits == self.levels - 1).unsqueeze(1)
        below = F.logsigmoid((centred + half) * inverse).masked_fill(highest, 0)
        above = F.logsigmoid((half - centred) * inverse).masked_fill(lowest, 0)
        width = (-(-2 * half * inverse).expm1()).log().masked_fill(lowest | highest, 0)
        return below + above + width

    def _scaled(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        return digits.to(dtype) * (2 / (self.levels - 1)) - 1

    def _split(self, parameters: Tensor) -> _Mixture:
        k = self.mixtures
        groups, rest = divmod(parameters.shape[1], k)
        channels = (groups - 1) // 2 if groups != 10 else 3
        if rest or groups < 3 or self.parameter_channels(channels) != parameters.shape[1]:
            raise ValueError(
                f"parameters must be [B, (1 + 2 C) * {k}, ...], or [B, 10 * {k}, ...] for C = 3, "
                f"got {_checks.shape(parameters)}"
            )
        wide = parameters.to(base.wide(parameters)).unflatten(1, (groups, k))
        means, scales = wide[:, 1 : 1 + channels], wide[:, 1 + channels : 1 + 2 * channels]
        return _Mixture(
            wide[:, 0].log_softmax(1),
            means.transpose(1, 2),
            scales.transpose(1, 2).clamp(self.lowest, _HIGHEST_LOG_SCALE),
            wide[:, 1 + 2 * channels :].tanh().transpose(1, 2),
        )


@dataclass(frozen=True)
class _Mixture:
    """The parameters by meaning: ``[B, K, ...]``, then ``[B, K, C, ...]``."""

    log_weights: Tensor
    means: Tensor
    log_scales: Tensor
    coefficients: Tensor  # [B, K, 3, ...] of three channels, else [B, K, 0, ...]

    def channel_means(self, channel: int, before: list[Tensor]) -> Tensor:
        """The means ``[B, K, ...]`` of a channel given those before it ``[B, 1 or K, ...]``."""
        mean = self.means[:, :, channel]
        if self.coefficients.shape[2] == 0:
            return mean
        # alpha, then beta and gamma: the coefficients of channel c start at c (c - 1) / 2
        first = channel * (channel - 1) // 2
        for offset in range(channel):
            mean = mean + self.coefficients[:, :, first + offset] * before[offset]
        return mean
