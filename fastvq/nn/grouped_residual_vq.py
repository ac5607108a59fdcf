# SPDX-License-Identifier: Apache-2.0
"""``GroupedResidualVQ``: the channels in groups, each with residual codebooks of its own."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from fastvq import _checks
from fastvq.nn import _layout
from fastvq.nn.codebook import Usage
from fastvq.nn.learning import EMA, Learning
from fastvq.nn.quantized import Quantized
from fastvq.nn.residual_vq import ResidualVQ
from fastvq.nn.revival import Revival
from fastvq.nn.start import KMeans, Start
from fastvq.ops.residual.api import Gradient as Estimator


class GroupedResidualVQ(nn.Module):
    r"""Splits the channels into G groups and quantizes each by a :class:`ResidualVQ` of its own.

    With few levels it reaches the rate of many: G Q codes a vector, of which Q follow one another.
    The loss is the mean over the groups, so that every element counts as in one quantizer.

    Args:
        dim: channels of the input, a multiple of ``groups``.
        codebook_size: K, the number of codes of each level.
        num_quantizers: Q, the number of levels of each group.
        groups: G.
        learning, start, revival, commitment_weight, gradient, channel_dim: as
            :class:`ResidualVQ` has them, the same for every group.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        As :class:`ResidualVQ`; with several processes one reduction a step for each group. The
        groups run one after another.

    Source: 2305.02765 (HiFi-Codec), section 3.2.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.GroupedResidualVQ(128, 1024, num_quantizers=2, groups=2, channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(2, 128, 50))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 128, 50]), torch.Size([2, 50, 2, 2]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        groups: int,
        *,
        learning: Learning = EMA(),
        start: Start = KMeans(),
        revival: Revival | None = Revival(),
        commitment_weight: float = 0.25,
        gradient: Estimator = "straight_through",
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        _checks.positive("dim", dim)
        _checks.positive("groups", groups)
        if dim % groups:
            raise ValueError(f"dim must be a multiple of groups = {groups}, got {dim}")
        self.dim, self.groups, self.channel_dim = dim, groups, channel_dim
        self.quantizers = nn.ModuleList(
            ResidualVQ(
                dim // groups,
                codebook_size,
                num_quantizers,
                learning=learning,
                start=start,
                revival=revival,
                commitment_weight=commitment_weight,
                gradient=gradient,
                channel_dim=channel_dim,
            )
            for _ in range(groups)
        )

    @property
    def codebook(self) -> Tensor:
        """The codes of all groups and levels ``[G, Q, K, D / G]``."""
        return torch.stack([quantizer.codebook for quantizer in self._each()])

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, levels: int | None = None
    ) -> Quantized:
        """Quantizes x; in training the codebooks learn from it.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, indices -1, no loss, no part in learning.
            levels: how many of the first levels; all unless given.

        Returns:
            :class:`Quantized` with indices ``[..., G, Q]``, or ``[..., G, levels]``.

        Raises:
            TypeError, ValueError: x or mask does not fit, or levels is no int in 1 to Q.
        """
        parts = zip(self._each(), self._parts(x, mask), strict=True)
        outs = [quantizer(part, mask, levels=levels) for quantizer, part in parts]
        return Quantized(
            torch.cat([out.quantized for out in outs], self.channel_dim),
            torch.stack([out.indices for out in outs], -2),
            torch.stack([out.loss for out in outs]).mean(),
        )

    def encode(self, x: Tensor, levels: int | None = None, beam: int = 1) -> Tensor:
        """The indices of x ``[..., G, Q]``; levels and beam as :meth:`ResidualVQ.encode`."""
        parts = zip(self._each(), self._parts(x, None), strict=True)
        return torch.stack([q.encode(part, levels, beam) for q, part in parts], -2)

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices ``[..., G, q]``, q in 1 to Q; -1 adds nothing.

        Raises:
            TypeError: the indices are not integers.
            ValueError: the last dimensions are not G and 1 to Q.
            IndexError: (on the CPU) an index is out of range.
        """
        _checks.integers("indices", indices)
        if indices.ndim < 2 or indices.shape[-2] != self.groups:
            raise ValueError(
                f"indices must be [..., G, q] with G = {self.groups}, got {_checks.shape(indices)}"
            )
        parts = zip(self._each(), indices.unbind(-2), strict=True)
        return torch.cat([q.decode(part) for q, part in parts], self.channel_dim)

    def usage(self) -> tuple[Usage, ...]:
        """How the codebooks of each group are used. Waits for the device: call it when logging."""
        return tuple(quantizer.usage() for quantizer in self._each())

    def extra_repr(self) -> str:
        """The arguments that the groups do not show."""
        return f"dim={self.dim}, groups={self.groups}, channel_dim={self.channel_dim}"

    def _each(self) -> list[ResidualVQ]:
        return cast("list[ResidualVQ]", list(self.quantizers))

    def _parts(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        return x.chunk(self.groups, self.channel_dim)
