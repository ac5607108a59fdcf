# SPDX-License-Identifier: Apache-2.0
"""``ProjectedResidualVQ``: residual levels that each search in a small space of their own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastvq import _checks
from fastvq.nn import _layout, _stages
from fastvq.nn.codebook import Usage
from fastvq.nn.learning import Gradient, Learning
from fastvq.nn.quantized import Quantized
from fastvq.nn.revival import Revival
from fastvq.nn.start import KMeans, Start
from fastvq.nn.vector_quantizer import CodeMetric, VectorQuantizer
from fastvq.ops.quantize.api import Gradient as Estimator


class ProjectedResidualVQ(nn.Module):
    r"""Residual quantization with a projection in and out at every level, as neural codecs have it.

    .. math:: r_1 = x, \qquad y_q = \operatorname{out}_q(\operatorname{vq}_q(
              \operatorname{in}_q(r_q))), \qquad r_{q+1} = r_q - y_q, \qquad \hat x = \sum_q y_q

    where vq is a :class:`VectorQuantizer` of ``codebook_dim`` channels, by default on the unit
    sphere. The loss is the sum of its levels', each averaged over the elements that take the level.
    Gradients pass through all of it, the residuals included: an early projection also learns from
    what the later levels make of what it leaves.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes of each level.
        num_quantizers: Q, the number of levels.
        codebook_dim: channels of a code.
        metric: ``cosine``, ``angular`` (DAC's own), ``euclidean`` or ``dot``, as
            :class:`VectorQuantizer` has them.
        learning, start, revival, commitment_weight, gradient: of each level, as
            :class:`VectorQuantizer` has them.
        dropout: the probability, in training, that a sample of the batch takes only the first n
            levels, n uniform in 1 to Q; the levels it leaves out have index -1.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        As :class:`VectorQuantizer`, once for each level. Where codes are searched in the space of
        x, :class:`ResidualVQ` does all levels in one call, and faster.

    Source: 2306.06546 (DAC), section 3.2; factorized codes on the sphere: 2110.04627, section 3.2.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.ProjectedResidualVQ(dim=64, codebook_size=256, num_quantizers=3,
        ...                                 channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(2, 64, 50))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 64, 50]), torch.Size([2, 50, 3]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        *,
        codebook_dim: int = 8,
        metric: CodeMetric = "cosine",
        learning: Learning = Gradient(),
        start: Start = KMeans(),
        revival: Revival | None = Revival(),
        commitment_weight: float = 0.25,
        gradient: Estimator = "straight_through",
        dropout: float = 0.0,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        for name, size in (("num_quantizers", num_quantizers), ("codebook_dim", codebook_dim)):
            _checks.positive(name, size)
        _checks.fraction("dropout", dropout)
        self.dim, self.codebook_size, self.num_quantizers = dim, codebook_size, num_quantizers
        self.dropout, self.channel_dim = dropout, channel_dim
        self.levels = nn.ModuleList(
            VectorQuantizer(
                dim,
                codebook_size,
                codebook_dim=codebook_dim,
                metric=metric,
                learning=learning,
                start=start,
                revival=revival,
                commitment_weight=commitment_weight,
                gradient=gradient,
            )
            for _ in range(num_quantizers)
        )

    @property
    def codebook(self) -> Tensor:
        """The codes of all levels ``[Q, K, codebook_dim]``."""
        return torch.stack([level.codebook for level in self._each()])

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, levels: int | None = None
    ) -> Quantized:
        """Quantizes x; in training the codebooks learn from it.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, indices -1, no loss, no part in learning.
            levels: how many of the first levels; all unless given. ``dropout`` then draws n up to
                ``levels``, and the others are not touched, nor have their parameters a gradient.

        Returns:
            :class:`Quantized` with indices ``[..., Q]``, or ``[..., levels]``.

        Raises:
            TypeError, ValueError: x or mask does not fit, or levels is no int in 1 to Q.
        """
        levels = _stages.check_levels(levels, self.num_quantizers)
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        rest = _layout.rows_of(x, self.channel_dim)  # [B, M, dim]
        usable = None if mask is None else mask.reshape(rest.shape[:2])
        dropout = self.dropout if self.training else 0.0
        taken = _stages.taken(rest, usable, levels, dropout)
        total, indices, losses = torch.zeros_like(rest), [], []
        for q, level in enumerate(self._each()[:levels]):
            quantized, index, loss = level(rest, None if taken is None else taken > q)
            rest, total = rest - quantized, total + quantized
            indices.append(index)
            losses.append(loss)
        quantized = _layout.vectors_out(total, x, self.channel_dim)
        shape = (*_layout.leading(x, self.channel_dim), levels)
        loss = torch.stack(losses).sum()
        return Quantized(quantized, torch.stack(indices, -1).reshape(shape), loss)

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """The indices of x ``[..., Q]``, or ``[..., levels]`` of the first levels alone."""
        levels = _stages.check_levels(levels, self.num_quantizers)
        _layout.check_input(x, None, self.dim, self.channel_dim)
        rest, indices = _layout.rows_of(x, self.channel_dim), []
        for level in self._each()[:levels]:
            indices.append(level.encode(rest))
            rest = rest - level.decode(indices[-1])
        shape = (*_layout.leading(x, self.channel_dim), levels)
        return torch.stack(indices, -1).reshape(shape)

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width ``[..., q]`` of the first q levels, 1 to Q; a level of
                -1 adds nothing.

        Raises:
            TypeError: the indices are not integers.
            ValueError: the last dimension is not 1 to Q.
            IndexError: (on the CPU) an index is out of range.
        """
        _stages.check_indices(indices, self.num_quantizers, self.codebook_size)
        first, *more = indices.unbind(-1)
        level, *levels = self._each()
        vectors = level.decode(first)
        for level, index in zip(levels, more, strict=False):
            vectors = vectors + level.decode(index)
        return _layout.decoded(vectors, self.channel_dim)

    def usage(self) -> tuple[Usage, ...]:
        """How each level's codebook is used. Waits for the device: call it when logging."""
        return tuple(level.usage() for level in self._each())

    def extra_repr(self) -> str:
        """The arguments that the levels do not show."""
        return (
            f"dim={self.dim}, num_quantizers={self.num_quantizers}, dropout={self.dropout}, "
            f"channel_dim={self.channel_dim}"
        )

    def _each(self) -> list[VectorQuantizer]:
        return cast("list[VectorQuantizer]", list(self.levels))
