# SPDX-License-Identifier: Apache-2.0
"""``SimVQ``: a frozen codebook seen through one learned linear map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout, _tables
from fastvq.nn.quantized import Quantized
from fastvq.ops._layout import compute_dtype
from fastvq.ops.quantize.api import GRADIENTS, Gradient


class SimVQ(nn.Module):
    r"""Replaces every vector by the nearest of K frozen Gaussian codes under one learned map.

    .. math:: c_k = W g_k, \qquad L = w \lVert \operatorname{sg}[x] - c \rVert^2
              + \beta \lVert x - \operatorname{sg}[c] \rVert^2

    averaged over the elements. W is the only thing that learns, so that a step moves all codes,
    used or not, and none dies alone. The gradient of the output passes to the input unchanged,
    unless another estimator is asked for.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes.
        codebook_dim: channels of a frozen code g, ``dim`` unless given.
        codebook_weight: w.
        commitment_weight: :math:`\beta`.
        gradient: how the gradient of the output reaches the input, as in
            :func:`fastvq.ops.quantize`: ``straight_through``, ``rotation``, or ``diveq``, whose
            gradient reaches the map as well.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Buffers:
        frozen: g ``[K, codebook_dim]``, drawn once with variance ``1 / codebook_dim``.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        The codes are mapped once a call, in float32 (float64 for float64) also in 16-bit models and
        under autocast; the search is that of :func:`fastvq.ops.nearest`. Deterministic given the
        frozen codes. A row holding NaN or Inf gets index 0 and makes the loss NaN.
        Memory O(N + K).

    Source: 2411.02038, section 4.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.SimVQ(dim=64, codebook_size=65536, channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(2, 64, 8, 8))
        >>> quantized.shape, indices.shape, [name for name, _ in vq.named_parameters()]
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 8, 8]), ['map.weight'])
    """

    frozen: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        codebook_dim: int | None = None,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        gradient: Gradient = "straight_through",
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        codebook_dim = dim if codebook_dim is None else codebook_dim
        for name, size in (
            ("dim", dim),
            ("codebook_size", codebook_size),
            ("codebook_dim", codebook_dim),
        ):
            _checks.positive(name, size)
        _checks.fraction("codebook_weight", codebook_weight, high=float("inf"))
        _checks.fraction("commitment_weight", commitment_weight, high=float("inf"))
        _checks.one_of("gradient", gradient, GRADIENTS)
        self.dim, self.codebook_size, self.channel_dim = dim, codebook_size, channel_dim
        self.gradient = gradient
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.register_buffer(
            "frozen", torch.randn(codebook_size, codebook_dim) * codebook_dim**-0.5
        )
        self.map = nn.Linear(codebook_dim, dim, bias=False)

    @property
    def codebook(self) -> Tensor:
        """The mapped codes ``[K, dim]``, with the gradient of the map."""
        dtype = compute_dtype(self.frozen)
        with torch.autocast(self.frozen.device.type, enabled=False):
            return nn.functional.linear(self.frozen.to(dtype), self.map.weight.to(dtype))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes x.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, index -1, no loss.
        """
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        rows, codes = _layout.rows_of(x, self.channel_dim), self.codebook
        indices = ops.nearest(rows, codes).indices  # [B, M]
        if mask is not None:
            indices = torch.where(mask.reshape(indices.shape), indices, -1)
        out = ops.quantize(rows, codes, indices, gradient=self.gradient)
        loss = self.codebook_weight * out.codebook_loss
        loss = loss + self.commitment_weight * out.commitment_loss
        quantized = _layout.vectors_out(out.quantized, x, self.channel_dim)
        return Quantized(quantized, indices.reshape(_layout.leading(x, self.channel_dim)), loss)

    def encode(self, x: Tensor) -> Tensor:
        """The indices of x, int64: the shape of x without its channels."""
        _layout.check_input(x, None, self.dim, self.channel_dim)
        indices = ops.nearest(_layout.rows_of(x, self.channel_dim), self.codebook).indices
        return indices.reshape(_layout.leading(x, self.channel_dim))

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width and shape; -1 decodes to zeros.

        Raises:
            TypeError: the indices are not integers.
            IndexError: (on the CPU) an index is out of range.
        """
        # the whole table, for the bits of a product depend on how many rows it has
        codes = self.codebook
        return _tables.decode(indices, codes, self.map.weight.dtype, self.channel_dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"codebook_dim={self.frozen.shape[-1]}, codebook_weight={self.codebook_weight}, "
            f"commitment_weight={self.commitment_weight}, gradient={self.gradient!r}, "
            f"channel_dim={self.channel_dim}"
        )
