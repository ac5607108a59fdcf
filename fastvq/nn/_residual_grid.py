# SPDX-License-Identifier: Apache-2.0
"""What residual quantizers on grids share: each grid is finer than the one before it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.nn import _layout, _stages
from fastvq.nn._grid import Grid
from fastvq.nn.quantized import Quantized
from fastvq.ops._layout import compute_dtype

# what float32 tells apart in one channel
_MOST_STEPS = 1 << 24


class ResidualGrid(Grid):
    r"""Q grids in a row. Grid q has L values :math:`L^{-q} (2 j / (L - 1) - 1)` a channel.

    Half a step of one grid, :math:`L^{-q} / (L - 1)`, is how far the next one and its own half step
    reach, so that inside of :math:`\pm L / (L - 1)` the sums of the values are :math:`L^Q` evenly
    spaced ones, each reached in one way.
    """

    def __init__(
        self,
        levels: Sequence[int],
        places: Sequence[int],
        num_quantizers: int,
        dim: int | None,
        dropout: float,
        channel_dim: int,
    ) -> None:
        _checks.positive("num_quantizers", num_quantizers)
        _checks.fraction("dropout", dropout)
        if max(levels) ** num_quantizers > _MOST_STEPS:
            raise ValueError(
                f"num_quantizers grids of {max(levels)} levels must give at most {_MOST_STEPS} "
                f"steps, the resolution of float32, got num_quantizers = {num_quantizers}"
            )
        super().__init__(levels, places, dim, channel_dim)
        self.num_quantizers, self.dropout = num_quantizers, dropout

    @abstractmethod
    def _cut(self, u: Tensor) -> Tensor:
        """The digits, in the dtype of u, of rests ``[B, M, d]`` as parts of the grid's size."""

    @abstractmethod
    def _loss(self, grid: int, rest: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        """0-d, from the rows ``[B, M, d]`` that counted ``[B, M]`` marks."""

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, levels: int | None = None
    ) -> Quantized:
        """Quantizes x.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, indices -1, no loss, no gradient.
            levels: how many of the first levels, as a codec has for its bit rates; all unless
                given. In training the others are left out as ``dropout`` leaves them out, which
                then draws n up to ``levels``.

        Returns:
            :class:`Quantized` with indices ``[..., Q]``, or ``[..., levels]``.

        Raises:
            TypeError, ValueError: x or mask does not fit, or levels is no int in 1 to Q.
        """
        levels = _stages.check_levels(levels, self.num_quantizers)
        z, fault = self._latents(x, mask)
        present = None if mask is None else mask.reshape(fault.shape)
        dropout = self.dropout if self.training else 0.0
        count = _stages.taken(z, present, levels, dropout)
        soft = self._bounded(z)
        # a bad row is in no average, and yet it shows
        loss, rest, total, indices = fault.sum(), soft, torch.zeros_like(z), []
        for q in range(levels):
            digits = self._cut(self._unscaled(rest.detach(), q))
            codes = self._values(digits, q)
            takes = fault == 0 if count is None else (fault == 0) & (count > q)
            loss = loss + self._loss(q, rest, codes, takes)
            index = self._number(digits)
            if count is not None:
                index = torch.where(count > q, index, -1)
                codes = torch.where((count > q).unsqueeze(-1), codes, 0)
            total, rest = total + codes, rest - codes
            indices.append(index)
        # the value of the codes to the last bit, the gradient of what was rounded: that of one
        # grid, however many there are
        quantized = total + (soft - soft.detach())
        # autocast may have put the projections in 16 bits; the output is of the input's dtype
        quantized = self.project_out(quantized.to(x.dtype)).to(x.dtype)
        if present is not None:
            quantized = torch.where(present.unsqueeze(-1), quantized, 0)
        quantized = _layout.vectors_out(quantized, x, self.channel_dim)
        return Quantized(quantized, self._indices_out(indices, x), loss)

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """The indices of x ``[..., Q]``, or ``[..., levels]`` of the first levels alone."""
        rest = self._bounded(self._latents(x)[0])
        indices = []
        for q in range(_stages.check_levels(levels, self.num_quantizers)):
            digits = self._cut(self._unscaled(rest, q))
            rest = rest - self._values(digits, q)
            indices.append(self._number(digits))
        return self._indices_out(indices, x)

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width ``[..., q]`` of the first q levels, 1 to Q; a level of
                -1 adds nothing, and where all are -1 the vector is zero.

        Raises:
            TypeError: the indices are not integers.
            ValueError: the last dimension is not 1 to Q.
            IndexError: (on the CPU) an index is out of range.
        """
        _stages.check_indices(indices, self.num_quantizers, self.codebook_size)
        dtype = compute_dtype(self.dtype_probe)
        total = torch.zeros((), dtype=dtype, device=indices.device)
        for q, index in enumerate(indices.unbind(-1)):
            codes = self._values(self._digits(index).to(dtype), q)
            total = total + torch.where((index >= 0).unsqueeze(-1), codes, 0)
        vectors = self.project_out(total.to(self.dtype_probe.dtype))
        vectors = torch.where((indices >= 0).any(-1, keepdim=True), vectors, 0)
        return _layout.decoded(vectors, self.channel_dim)

    def _bounded(self, z: Tensor) -> Tensor:
        """z within half a step of the first grid's outermost values."""
        levels = self._levels.to(z.dtype)
        reach = levels / (levels - 1)
        return torch.tanh(z / reach) * reach

    def _unscaled(self, rest: Tensor, grid: int) -> Tensor:
        return rest * self._levels.to(rest.dtype) ** grid

    def _values(self, digits: Tensor, grid: int) -> Tensor:
        """The codes of digits ``[..., d]``, in the digits' dtype."""
        levels = self._levels.to(digits.dtype)
        return (digits * (2 / (levels - 1)) - 1) * levels**-grid

    def _indices_out(self, indices: list[Tensor], x: Tensor) -> Tensor:
        leading = _layout.leading(x, self.channel_dim)
        return torch.stack(indices, dim=-1).reshape(*leading, len(indices))

    def extra_repr(self) -> str:
        """The arguments that every such quantizer has."""
        return (
            f"{super().extra_repr()}, num_quantizers={self.num_quantizers}, dropout={self.dropout}"
        )
