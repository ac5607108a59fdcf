# SPDX-License-Identifier: Apache-2.0
"""What quantizers without a codebook share: codes on a grid, computed and never stored."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastvq import _checks
from fastvq.nn import _layout
from fastvq.nn.quantized import Quantized
from fastvq.ops._layout import compute_dtype

# a channel of this size has digit 0, so that a row of them has index 0
_LOWEST = -1e4


class Grid(nn.Module):
    """Codes on a grid: every channel is cut by itself into a digit, and the digits are the index.

    Index i has digit ``i // places[j] % levels[j]`` in channel j. Between the projections all is
    done in float32 (float64 for float64) and int64, whatever the dtype of the model.
    """

    _levels: Tensor
    _places: Tensor
    dtype_probe: Tensor

    def __init__(
        self, levels: Sequence[int], places: Sequence[int], dim: int | None, channel_dim: int
    ) -> None:
        super().__init__()
        width = len(levels)
        self.dim = width if dim is None else dim
        _checks.positive("dim", self.dim)
        self.codebook_size, self.channel_dim = math.prod(levels), channel_dim
        if self.codebook_size >= 2**63:
            raise ValueError(f"codebook_size must be below 2**63, got {self.codebook_size}")
        self.projects = self.dim != width
        self.project_in = nn.Linear(self.dim, width) if self.projects else nn.Identity()
        self.project_out = nn.Linear(width, self.dim) if self.projects else nn.Identity()
        # integers, which module.to(dtype) leaves alone; products of narrow ones are vectorized
        digit = torch.int32 if self.codebook_size < 2**31 else torch.int64
        self.register_buffer("_levels", torch.tensor(levels, dtype=digit), persistent=False)
        self.register_buffer("_places", torch.tensor(places, dtype=digit), persistent=False)
        # follows module.to(dtype): the dtype of what `decode` returns
        self.register_buffer("dtype_probe", torch.empty(0), persistent=False)

    def _number(self, digits: Tensor) -> Tensor:
        """The indices, int64, of digits ``[..., d]``, which are whole numbers of any dtype."""
        places = self._places
        return (digits.to(places.dtype) * places).sum(-1, dtype=places.dtype).long()

    def _digits(self, indices: Tensor) -> Tensor:
        """The digits ``[..., d]`` of indices ``[...]``; those of 0 for -1."""
        return indices.long().clamp_min(0).unsqueeze(-1) // self._places % self._levels

    def _latents(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows ``[B, M, d]`` to be cut; and ``[B, M]``, 0, or NaN where a row was not finite."""
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        rows = _layout.rows_of(x, self.channel_dim)  # [B, M, dim]
        if mask is not None:
            # what padding holds must not reach the gradient of a projection
            rows = torch.where(mask.reshape(rows.shape[:2]).unsqueeze(-1), rows, 0)
        z = self.project_in(rows)
        z = z.to(compute_dtype(z))
        fault = (z.detach() - z.detach()).sum(-1)
        # a GPU would wait for the answer, and a graph cannot branch on it
        if fault.device.type == "cpu" and not torch.compiler.is_compiling() and fault.sum() == 0:
            return z, fault
        return torch.where((fault == 0).unsqueeze(-1), z, _LOWEST), fault

    def extra_repr(self) -> str:
        """The arguments that every such quantizer has."""
        return f"dim={self.dim}, channel_dim={self.channel_dim}"


class GridQuantizer(Grid):
    """One grid; a vector has one index."""

    @abstractmethod
    def _cut(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What is rounded of z ``[B, M, d]``, the codes it is rounded to, their indices."""

    @abstractmethod
    def _values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        """The codes of digits ``[..., d]``."""

    @abstractmethod
    def _loss(self, soft: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        """0-d, from the rows ``[B, M, d]`` that counted ``[B, M]`` marks."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes x.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, index -1, no loss, no gradient.
        """
        z, fault = self._latents(x, mask)
        soft, codes, indices = self._cut(z)
        present = None if mask is None else mask.reshape(indices.shape)
        counted = fault == 0 if present is None else (fault == 0) & present
        # a bad row is in no average, and yet it shows
        loss = self._loss(soft, codes, counted) + fault.sum()
        # the value of the code to the last bit, the gradient of what was rounded
        quantized = codes + (soft - soft.detach())
        # autocast may have put the projections in 16 bits; the output is of the input's dtype
        quantized = self.project_out(quantized.to(x.dtype)).to(x.dtype)
        if present is not None:
            indices = torch.where(present, indices, -1)
            quantized = torch.where(present.unsqueeze(-1), quantized, 0)
        quantized = _layout.vectors_out(quantized, x, self.channel_dim)
        return Quantized(quantized, indices.reshape(_layout.leading(x, self.channel_dim)), loss)

    def encode(self, x: Tensor) -> Tensor:
        """The indices of x, int64: the shape of x without its channels."""
        _, _, indices = self._cut(self._latents(x)[0])
        return indices.reshape(_layout.leading(x, self.channel_dim))

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width and shape; -1 decodes to zeros.

        Raises:
            TypeError: the indices are not integers.
            IndexError: (on the CPU) an index is out of range.
        """
        _checks.integers("indices", indices)
        _checks.index_range(indices, self.codebook_size)
        dtype = self.dtype_probe.dtype
        codes = self._values(self._digits(indices), compute_dtype(self.dtype_probe))
        vectors = self.project_out(codes.to(dtype))
        vectors = torch.where(indices.unsqueeze(-1) >= 0, vectors, 0)
        return _layout.decoded(vectors, self.channel_dim)
