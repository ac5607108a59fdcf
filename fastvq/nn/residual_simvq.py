# SPDX-License-Identifier: Apache-2.0
"""``ResidualSimVQ``: frozen codebooks in a row, each seen through a learned map of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout, _stages, _tables
from fastvq.nn.quantized import Quantized
from fastvq.ops._layout import compute_dtype


class ResidualSimVQ(nn.Module):
    r"""Replaces every vector by a sum of codes, one of each of Q mapped codebooks.

    .. math:: c_{q,k} = W_q g_{q,k}, \qquad r_1 = x, \qquad
              i_q = \arg\min_k \lVert r_q - c_{q,k} \rVert, \qquad r_{q+1} = r_q - c_{q,i_q}

    .. math:: L = \sum_q w \lVert \operatorname{sg}[r_q] - c_{q,i_q} \rVert^2
              + \beta \lVert r_q - \operatorname{sg}[c_{q,i_q}] \rVert^2

    each term averaged over the elements. The maps W are all that learns. The gradient of the output
    :math:`\sum_q c_{q,i_q}` passes to the input unchanged.

    Args:
        dim: channels of the input.
        codebook_size: K, the number of codes of each level.
        num_quantizers: Q, the number of levels.
        codebook_dim: channels of a frozen code g, ``dim`` unless given.
        codebook_weight: w.
        commitment_weight: :math:`\beta`.
        dropout: the probability, in training, that a sample of the batch takes only the first n
            levels, n uniform in 1 to Q; the others have index -1 and no loss.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Attributes:
        maps: W ``[Q, dim, codebook_dim]``, the parameter.

    Buffers:
        frozen: g ``[Q, K, codebook_dim]``, drawn once with variance ``1 / codebook_dim``.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        As :class:`SimVQ`; all levels are searched by :func:`fastvq.ops.residual`. Deterministic
        given the frozen codes and torch's random state, which dropout draws from.

    Source: 2411.02038, section 4; residuals, 2107.03312, section III-C.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.ResidualSimVQ(dim=64, codebook_size=1024, num_quantizers=4)
        >>> quantized, indices, loss = vq(torch.randn(2, 100, 64))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 100, 64]), torch.Size([2, 100, 4]), torch.Size([]))
    """

    frozen: Tensor

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        num_quantizers: int,
        *,
        codebook_dim: int | None = None,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        dropout: float = 0.0,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        codebook_dim = dim if codebook_dim is None else codebook_dim
        for name, size in (
            ("dim", dim),
            ("codebook_size", codebook_size),
            ("num_quantizers", num_quantizers),
            ("codebook_dim", codebook_dim),
        ):
            _checks.positive(name, size)
        _checks.fraction("codebook_weight", codebook_weight, high=float("inf"))
        _checks.fraction("commitment_weight", commitment_weight, high=float("inf"))
        _checks.fraction("dropout", dropout)
        self.dim, self.codebook_size, self.num_quantizers = dim, codebook_size, num_quantizers
        self.codebook_weight, self.commitment_weight = codebook_weight, commitment_weight
        self.dropout, self.channel_dim = dropout, channel_dim
        self.register_buffer(
            "frozen",
            torch.randn(num_quantizers, codebook_size, codebook_dim) * codebook_dim**-0.5,
        )
        # as the one map of SimVQ starts
        bound = codebook_dim**-0.5
        self.maps = nn.Parameter(
            torch.empty(num_quantizers, dim, codebook_dim).uniform_(-bound, bound)
        )

    @property
    def codebook(self) -> Tensor:
        """The mapped codes ``[Q, K, dim]``, with the gradient of the maps."""
        dtype = compute_dtype(self.frozen)
        with torch.autocast(self.frozen.device.type, enabled=False):
            return self.frozen.to(dtype) @ self.maps.to(dtype).mT

    def forward(
        self, x: Tensor, mask: Tensor | None = None, *, levels: int | None = None
    ) -> Quantized:
        """Quantizes x.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, indices -1, no loss.
            levels: how many of the first levels, as a codec has for its bit rates; all unless
                given. In training the others are left out as ``dropout`` leaves them out, which
                then draws n up to ``levels``.

        Returns:
            :class:`Quantized` with indices ``[..., Q]``, or ``[..., levels]``.

        Raises:
            TypeError, ValueError: x or mask does not fit, or levels is no int in 1 to Q.
        """
        levels = _stages.check_levels(levels, self.num_quantizers)
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        rows = _layout.rows_of(x, self.channel_dim)  # [B, M, dim]
        usable = None if mask is None else mask.reshape(rows.shape[:2])
        dropout = self.dropout if self.training else 0.0
        taken = _stages.taken(rows, usable, levels, dropout)
        out = ops.residual(rows, self.codebook[:levels], levels=taken)
        loss = self.codebook_weight * out.codebook_losses.sum()
        loss = loss + self.commitment_weight * out.commitment_losses.sum()
        quantized = out.quantized
        if usable is not None:
            # zero already; padding is not to have the output's gradient either
            quantized = torch.where(usable.unsqueeze(-1), quantized, 0)
        quantized = _layout.vectors_out(quantized, x, self.channel_dim)
        indices = _layout.indices_out(out.indices, x, self.channel_dim)
        return Quantized(quantized, indices, loss)

    def encode(self, x: Tensor, levels: int | None = None) -> Tensor:
        """The indices of x ``[..., Q]``, or ``[..., levels]`` of the first levels alone."""
        levels = _stages.check_levels(levels, self.num_quantizers)
        _layout.check_input(x, None, self.dim, self.channel_dim)
        rows = _layout.rows_of(x, self.channel_dim)
        indices = ops.residual(rows, self.codebook[:levels]).indices
        return _layout.indices_out(indices, x, self.channel_dim)

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
        total = _tables.total(indices.long(), self.codebook)
        return _layout.decoded(total.to(self.maps.dtype), self.channel_dim)

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"num_quantizers={self.num_quantizers}, codebook_dim={self.frozen.shape[-1]}, "
            f"codebook_weight={self.codebook_weight}, commitment_weight={self.commitment_weight}, "
            f"dropout={self.dropout}, channel_dim={self.channel_dim}"
        )
