# SPDX-License-Identifier: Apache-2.0
"""``IBQ``: index backpropagation, a gradient for every code in every step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout, _tables
from fastvq.nn._distributed import joint_mean
from fastvq.nn.quantized import Quantized
from fastvq.ops._layout import compute_dtype


class IBQ(nn.Module):
    r"""Replaces every vector by the code of the largest product, and lets the choice be learned.

    With the softmax p of the products :math:`x \cdot c_k`,

    .. math:: i = \arg\max_k \, x \cdot c_k, \qquad
              q = c_i + \sum_k (p_k - \operatorname{sg}[p_k]) \operatorname{sg}[c_k]

    the output has the value :math:`c_i`, and its gradient reaches x and all codes through p, and
    the chosen code as well. (The sum is that of the one-hot choice straight through, times the
    codes.)

    .. math:: L = \lVert x - q \rVert^2 + \beta \lVert x - \operatorname{sg}[c_i] \rVert^2
              + w \lVert \operatorname{sg}[x] - c_i \rVert^2
              + \lambda \left( \operatorname{E}_n[H(p^\tau_n)]
              - \gamma \, H(\operatorname{E}_n[p^\tau_n]) \right)

    the squares averaged over the elements, the entropies in nats of the softmax of
    :math:`\tau \, x \cdot c_k`.

    Args:
        dim: channels of the input and of a code.
        codebook_size: K, the number of codes.
        commitment_weight: :math:`\beta`.
        codebook_weight: w.
        entropy_weight: :math:`\lambda`; at 0 the entropies are not computed.
        diversity: :math:`\gamma`.
        inverse_temperature: :math:`\tau`.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Attributes:
        codebook: c ``[K, dim]``, a parameter.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        The gradient of the output does not pass to x unchanged as in other quantizers. All is done
        in float32 (float64 for float64), also in 16-bit models and under autocast; indices are
        those of :func:`fastvq.ops.nearest`. Deterministic. Backward makes the softmax anew: memory
        is O((N + K) dim), time N K dim. A row holding NaN or Inf gets index 0
        and makes the loss NaN. In training with several processes the entropies' batch is that of
        all.

    Source: 2412.02692, section 3.2; the weights are those of the authors' code.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.IBQ(dim=64, codebook_size=1024, channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(2, 64, 8, 8))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 8, 8]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.25,
        entropy_weight: float = 0.05,
        diversity: float = 1.0,
        inverse_temperature: float = 100.0,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        _checks.positive("dim", dim)
        _checks.positive("codebook_size", codebook_size)
        for name, value in (
            ("commitment_weight", commitment_weight),
            ("codebook_weight", codebook_weight),
            ("entropy_weight", entropy_weight),
            ("diversity", diversity),
            ("inverse_temperature", inverse_temperature),
        ):
            _checks.fraction(name, value, high=float("inf"))
        if inverse_temperature == 0:
            raise ValueError("inverse_temperature must be above 0, got 0")
        self.dim, self.codebook_size, self.channel_dim = dim, codebook_size, channel_dim
        self.commitment_weight, self.codebook_weight = commitment_weight, codebook_weight
        self.entropy_weight, self.diversity = entropy_weight, diversity
        self.inverse_temperature = inverse_temperature
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes x.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, index -1, no loss, no gradient.
        """
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        shape = _layout.rows_of(x, self.channel_dim).shape
        rows = _layout.rows_of(x, self.channel_dim).flatten(0, 1)  # [N, dim]
        rows = rows.to(compute_dtype(rows))
        codes = self.codebook.to(rows.dtype)
        indices = self._search(rows, codes)
        fault = (rows.detach() - rows.detach()).sum(-1)
        counted = fault == 0
        if mask is not None:
            indices = torch.where(mask.flatten(), indices, -1)
            counted = counted & mask.flatten()
        # what a bad row and padding hold must not reach the softmax's gradient
        clean = torch.where(counted.unsqueeze(-1), rows, 0)
        quantized = nn.functional.embedding(indices.clamp_min(0), codes)
        if torch.is_grad_enabled():
            soft = ops.soft_assignment(clean, codes, values=codes.detach(), metric="dot")
            soft = torch.where(counted.unsqueeze(-1), soft, 0)
            # the value of the code to the last bit, the gradient of code and choice
            quantized = quantized + (soft - soft.detach())
        quantized = torch.where((indices >= 0).unsqueeze(-1), quantized, 0)
        apart = torch.where(counted.unsqueeze(-1), clean - quantized, 0).square().sum()
        out = ops.quantize(rows, codes, indices)
        loss = apart / (counted.sum() * self.dim).clamp_min(1)
        loss = loss + self.commitment_weight * out.commitment_loss
        loss = loss + self.codebook_weight * out.codebook_loss
        if self.entropy_weight > 0:
            loss = loss + self.entropy_weight * self._entropy(clean, codes, counted)
        quantized = _layout.vectors_out(quantized.to(x.dtype).view(shape), x, self.channel_dim)
        return Quantized(quantized, indices.reshape(_layout.leading(x, self.channel_dim)), loss)

    def encode(self, x: Tensor) -> Tensor:
        """The indices of x, int64: the shape of x without its channels."""
        _layout.check_input(x, None, self.dim, self.channel_dim)
        rows = _layout.rows_of(x, self.channel_dim)
        rows = rows.to(compute_dtype(rows))
        indices = self._search(rows, self.codebook.to(rows.dtype))
        return indices.reshape(_layout.leading(x, self.channel_dim))

    def decode(self, indices: Tensor) -> Tensor:
        """The vectors of indices, with ``dim`` channels in dimension ``channel_dim``.

        Args:
            indices: integers of any width and shape; -1 decodes to zeros.

        Raises:
            TypeError: the indices are not integers.
            IndexError: (on the CPU) an index is out of range.
        """
        codes = self.codebook
        return _tables.decode(indices, codes, codes.dtype, self.channel_dim)

    @staticmethod
    def _search(rows: Tensor, codes: Tensor) -> Tensor:
        return ops.nearest(rows, codes, metric="dot").indices

    def _entropy(self, rows: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        """That of each vector, less that of all of them."""
        found = ops.entropy(
            rows, codes, metric="dot", inverse_temperature=self.inverse_temperature, counted=counted
        )
        spread = found.batch
        if self.training:
            spread = ops.distribution_entropy(joint_mean(found.probabilities, found.counted))
        return found.sample - self.diversity * spread

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"commitment_weight={self.commitment_weight}, codebook_weight={self.codebook_weight}, "
            f"entropy_weight={self.entropy_weight}, diversity={self.diversity}, "
            f"inverse_temperature={self.inverse_temperature}, channel_dim={self.channel_dim}"
        )
