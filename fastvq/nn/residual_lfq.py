# SPDX-License-Identifier: Apache-2.0
"""``ResidualLFQ``: codes of signs in a row, each half the size of the one before it."""

from __future__ import annotations

from torch import Tensor

from fastvq.nn._residual_grid import ResidualGrid
from fastvq.nn.lfq import LFQ


class ResidualLFQ(ResidualGrid):
    r"""Replaces every channel by Q signs of halving size; entropy losses keep the codes in use.

    .. math:: r_1 = 2 \tanh(z / 2), \qquad c_q = 2^{1 - q} \operatorname{sign}(r_q), \qquad
              r_{q+1} = r_q - c_q, \qquad L = \sum_q L_\text{LFQ}(r_q, c_q)

    with -1 for the sign of 0. The output is :math:`\sum_q c_q`, its gradient that of :math:`r_1`;
    the sums of a channel are :math:`2^Q` evenly spaced values. The loss of a level is that of
    :class:`LFQ` over its codes: their distances from :math:`r_q` shrink by four from one level to
    the next, and with them what the loss asks for.

    The bound keeps every rest in reach of the codes that are left. Without it a channel beyond 2
    saturates all later levels, and the terms grow with the data.

    Args:
        codebook_size: K, the codes of one level, a power of two.
        num_quantizers: Q, at most 24.
        dim: channels of the input, :math:`\log_2 K` unless given. Where it is not, linear
            projections go in and out.
        entropy_weight, diversity, commitment_weight, inverse_temperature: as in :class:`LFQ`, whose
            ``group_bits`` is left at its default.
        dropout: the probability, in training, that a sample of the batch takes only the first n
            levels, n uniform in 1 to Q; the others have index -1 and no loss.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        As :class:`LFQ`; deterministic given torch's random state, which dropout draws from.

    Source: 2310.05737 (MAGVIT-v2), section 3.1; residuals, 2107.03312, section III-C.

    Example:
        >>> import torch, fastvq
        >>> lfq = fastvq.ResidualLFQ(2**10, num_quantizers=3, dim=64, channel_dim=1)
        >>> quantized, indices, loss = lfq(torch.randn(2, 64, 8, 8))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 8, 8, 3]), torch.Size([]))
    """

    def __init__(
        self,
        codebook_size: int,
        num_quantizers: int,
        dim: int | None = None,
        *,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment_weight: float = 0.02,
        inverse_temperature: float = 100.0,
        dropout: float = 0.0,
        channel_dim: int = -1,
    ) -> None:
        level = LFQ(
            codebook_size,
            entropy_weight=entropy_weight,
            diversity=diversity,
            commitment_weight=commitment_weight,
            inverse_temperature=inverse_temperature,
        )
        places = [1 << j for j in reversed(range(level.bits))]
        super().__init__([2] * level.bits, places, num_quantizers, dim, dropout, channel_dim)
        self.level = level

    def _cut(self, u: Tensor) -> Tensor:
        return (u > 0).to(u.dtype)

    def _loss(self, grid: int, rest: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        return self.level.loss_at(0.5**grid, rest, codes, counted)
