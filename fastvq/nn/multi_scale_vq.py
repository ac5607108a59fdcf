# SPDX-License-Identifier: Apache-2.0
"""``MultiScaleVQ``: residual quantization over resolutions, from coarse to fine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout, _stages, _tables
from fastvq.nn._pyramid import Pyramid, pooled, share
from fastvq.nn._resampling import resample
from fastvq.nn._smoothing import Smoothing
from fastvq.nn.codebook import Usage
from fastvq.nn.learning import EMA, Frozen, Gradient, Learning
from fastvq.nn.revival import Revival
from fastvq.nn.start import Given, KMeans, Start, Uniform
from fastvq.ops._layout import compute_dtype


class MultiScaleQuantized(NamedTuple):
    """What :class:`MultiScaleVQ` returns.

    Attributes:
        quantized: the sum over the scales, in the shape and dtype of the input.
        indices: one grid a scale, int64 ``[B, *scale]``; -1 where a cell is all padding.
        loss: 0-d, weighted, ready to add to the model's loss.
    """

    quantized: Tensor
    indices: tuple[Tensor, ...]
    loss: Tensor


class MultiScaleVQ(nn.Module):
    r"""Codes a grid of vectors at S resolutions, each what the coarser ones left over.

    With f the input and one codebook for all scales, for s = 1 to S

    .. math:: i_s = \arg\min_k \lVert \operatorname{down}_s(f - \hat f_{s-1}) - c_k \rVert, \qquad
              \hat f_s = \hat f_{s-1} + \phi_s(\operatorname{up}(c_{i_s})), \qquad
              \phi(h) = (h + \operatorname{conv}(h)) / 2

    .. math:: L = \frac{1}{S} \sum_s \beta \lVert f - \operatorname{sg}[\hat f_s] \rVert^2
              + w \lVert \operatorname{sg}[f] - \hat f_s \rVert^2

    each term averaged over the elements. The output is :math:`\hat f_S`; its gradient passes to the
    input unchanged. ``down`` is the mean over areas, ``up`` cubic. The second term teaches the
    convolutions, and under :class:`Gradient` the codes as well (w is its weight, 1 otherwise);
    :class:`EMA` moves the codes to the means of what they stand for at all scales.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes.
        scales: the resolutions, coarse to fine: ``(4,)`` for audio, ``(4, 4)`` or 4 for images,
            ``(2, 4, 4)`` for video. The last one is that of the input in the paper; another is
            resampled as all are.
        convolutions: how many different convolutions of width 3 the scales share, in order: S for
            one each, 1 for a single one, 0 for none.
        learning: :class:`EMA`, :class:`Gradient` or :class:`Frozen`.
        start: :class:`KMeans` (of the differences from scale to scale), :class:`Uniform` or
            :class:`Given`.
        revival: how dead codes come back, or ``None``. Without effect under ``Frozen``.
        commitment_weight: :math:`\beta`.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        All is done in float32 (float64 for float64), also in 16-bit models and under autocast.
        Deterministic given torch's random state, as far as torch's convolutions are. A vector
        holding NaN or Inf and padding are in no mean; the former gets index 0 where it is alone in
        its cell and makes the loss NaN. With several processes, counts and sums are reduced in one
        call a step.

        The convolutions start as the identity (in the authors' code at random), so that the codes
        fit from the first step.

    Source: 2404.02905 (VAR), section 3.2, algorithms 1 and 2; the loss and the blend of the
    convolution are those of the authors' code.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.MultiScaleVQ(32, 512, [1, 2, 4, 8], channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(2, 32, 8, 8))
        >>> quantized.shape, [list(grid.shape) for grid in indices]
        (torch.Size([2, 32, 8, 8]), [[2, 1, 1], [2, 2, 2], [2, 4, 4], [2, 8, 8]])
    """

    dtype_probe: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        scales: Sequence[int | Sequence[int]],
        *,
        convolutions: int = 4,
        learning: Learning = EMA(),
        start: Start = KMeans(),
        revival: Revival | None = Revival(),
        commitment_weight: float = 0.25,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        _checks.positive("dim", dim)
        _checks.positive("codebook_size", codebook_size)
        _checks.fraction("commitment_weight", commitment_weight, high=float("inf"))
        _checks.instance("learning", learning, EMA, Gradient, Frozen)
        _checks.instance("start", start, KMeans, Uniform, Given)
        if revival is not None:
            _checks.instance("revival", revival, Revival)
        if convolutions != 0:
            _checks.positive("convolutions", convolutions)
        self.dim, self.codebook_size, self.channel_dim = dim, codebook_size, channel_dim
        self.scales = _sizes(scales)
        self.commitment_weight = commitment_weight
        self.book = Pyramid(
            self.scales,
            codebook_size,
            dim,
            learning=learning,
            start=start,
            revival=None if isinstance(learning, Frozen) else revival,
        )
        self.convolutions = Smoothing(convolutions, dim, self.scales)
        # follows module.to(dtype), which the codes do not: the dtype of what `decode` returns
        self.register_buffer("dtype_probe", torch.empty(0), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """The codes ``[K, D]``."""
        return self.book.codes()[0]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> MultiScaleQuantized:
        """Quantizes x; in training the codebook learns from it.

        Args:
            x: grids of vectors ``[B, *spatial]`` with ``dim`` channels in ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, no loss, no part in any mean.
        """
        field, counted, present, fault = self._field(x, mask)
        if self.training:
            self.book.begin(field.detach(), counted)
        codes = self.book.snapshot()[0]
        loss, total = fault, torch.zeros_like(field)
        rows, indices, learned_from = [], [], []
        weight = self.book.learning.weight if isinstance(self.book.learning, Gradient) else 1.0
        for s in range(len(self.scales)):
            rest = field.detach() - total.detach()
            row, index, found = self._search(rest, counted, present, codes, s)
            total = total + self._added(index, codes, s, field.shape[2:])
            rows.append(row)
            indices.append(index)
            learned_from.append(torch.where(found, index.flatten(1), -1))
            # of one value both, with gradients to either side
            commitment = _mean_square(field - total.detach(), counted)
            learned = _mean_square(field.detach() - total, counted)
            loss = loss + (self.commitment_weight * commitment + weight * learned) / len(
                self.scales
            )
        if self.training:
            taken = torch.cat(learned_from, dim=1).unsqueeze(2)
            self.book.learn(torch.cat(rows, dim=1).unsqueeze(2), taken)
        # the value of the codes to the last bit, the gradient of the input
        quantized = (total.detach() + (field - field.detach())).to(x.dtype)
        if mask is not None:
            quantized = torch.where(present.unsqueeze(1), quantized, 0)
        return MultiScaleQuantized(quantized.movedim(1, self.channel_dim), tuple(indices), loss)

    def encode(self, x: Tensor, levels: int | None = None) -> tuple[Tensor, ...]:
        """The indices of x at the scales ``[B, *scale]``, or at the first ``levels`` alone."""
        levels = _stages.check_levels(levels, len(self.scales))
        field, counted, present, _ = self._field(x, None)
        codes, total, indices = self.book.codes()[0], torch.zeros_like(field), []
        for s in range(levels):
            _, index, _ = self._search(field - total, counted, present, codes, s)
            total = total + self._added(index, codes, s, field.shape[2:])
            indices.append(index)
        return tuple(indices)

    def decode(self, indices: Sequence[Tensor], size: Sequence[int] | None = None) -> Tensor:
        """The sum over the scales, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers ``[B, *scale]`` of any width, of the first scales or of all; -1 adds
                nothing. What padding was has a value here too.
            size: the resolution of the result, the last scale's unless given.

        Raises:
            TypeError: the indices are not integers.
            ValueError: there are more grids than scales, or one has another shape.
            IndexError: (on the CPU) an index is out of range.
        """
        if not 1 <= len(indices) <= len(self.scales):
            raise ValueError(
                f"indices must be 1 to {len(self.scales)} grids, got {len(indices)} of them"
            )
        size = self.scales[-1] if size is None else tuple(size)
        codes, total = self.book.codes()[0], None
        for s, (index, scale) in enumerate(zip(indices, self.scales, strict=False)):
            _checks.integers(f"indices[{s}]", index)
            if tuple(index.shape[1:]) != scale:
                raise ValueError(
                    f"indices[{s}] must be [B, {str(list(scale))[1:]}, got {_checks.shape(index)}"
                )
            _checks.index_range(index, self.codebook_size)
            added = self._added(index.long(), codes, s, size)
            total = added if total is None else total + added
        assert total is not None
        return total.to(self.dtype_probe.dtype).movedim(1, self.channel_dim).contiguous()

    def usage(self) -> Usage:
        """How the codebook is used, from the moving average of its counts in training.

        Waits for the device: call it when logging, not in every step.
        """
        return self.book.usage()

    def _field(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x ``[B, C, *spatial]``, zero where not counted; what is counted, and what is there,
        ``[B, *spatial]``; and 0-d 0, or NaN if a vector that is there is not finite.
        """
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        if x.ndim != 2 + len(self.scales[0]):
            raise ValueError(
                f"x must have {2 + len(self.scales[0])} dimensions for scales like "
                f"{self.scales[0]}, got {_checks.shape(x)}"
            )
        field = x.movedim(self.channel_dim, 1)
        field = field.to(compute_dtype(x))
        present = mask
        if present is None:
            present = torch.ones(_layout.leading(x, self.channel_dim), device=x.device).bool()
        fault = (field.detach() - field.detach()).sum(1)
        counted = (fault == 0) & present
        field = torch.where(counted.unsqueeze(1), field, 0)
        return field, counted, present, torch.where(present, fault, 0).sum()

    def _search(
        self, rest: Tensor, counted: Tensor, present: Tensor, codes: Tensor, scale: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What is searched at a scale ``[B, M, C]``, the indices ``[B, *scale]``, and in which
        cells ``[B, M]`` something was counted.
        """
        size = self.scales[scale]
        rows, found = pooled(rest, counted, size)
        index = torch.where(found, ops.nearest(rows, codes).indices, 0)
        there = share(present, size) > 0
        return rows, torch.where(there, index.view(-1, *size), -1), found

    def _added(self, index: Tensor, codes: Tensor, scale: int, size: Sequence[int]) -> Tensor:
        """What the codes of a scale add ``[B, C, *size]``."""
        code = _tables.lookup(index, codes).movedim(-1, 1)
        code = code.to(compute_dtype(code))
        with torch.autocast(code.device.type, enabled=False):
            code = resample(code, size, "bicubic")
            smooth: Tensor = self.convolutions(code, scale)
        return smooth

    def extra_repr(self) -> str:
        """The arguments that are not shown by the codebook."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, scales={self.scales}, "
            f"commitment_weight={self.commitment_weight}, channel_dim={self.channel_dim}"
        )


def _mean_square(difference: Tensor, counted: Tensor) -> Tensor:
    """The mean of the squares of the elements of the counted vectors; 0 of none."""
    weight = counted.to(difference.dtype)
    total = (difference.square() * weight.unsqueeze(1)).sum()
    return total / (weight.sum() * difference.shape[1]).clamp_min(1)


def _sizes(scales: Sequence[int | Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """The scales as tuples, checked."""
    sizes = tuple((s, s) if isinstance(s, int) else tuple(s) for s in scales)
    if not sizes:
        raise ValueError("scales must hold at least one resolution, got none")
    for size in sizes:
        if not 1 <= len(size) <= 3 or len(size) != len(sizes[0]):
            raise ValueError(
                f"each of scales must be of one to three dimensions, all alike, got {sizes}"
            )
        for length in size:
            _checks.positive("each length in scales", length)
    return sizes
