# SPDX-License-Identifier: Apache-2.0
"""``GumbelVQ``: a code drawn from a categorical distribution, relaxed by Gumbel noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastvq import _checks, ops
from fastvq.nn import _layout, _tables
from fastvq.nn._soft_codes import soft_choice
from fastvq.nn.quantized import Quantized

_SEEDS = 2**62


class GumbelVQ(nn.Module):
    r"""Draws the code of every vector from a distribution over the codes that the vector sets.

    With logits :math:`l_k = w_k \cdot x + b_k`, Gumbel noise g and temperature :math:`\tau`,

    .. math:: i = \arg\max_k \, l_k + g_k, \qquad
              p \propto \exp((l + g) / \tau), \qquad
              L = \lambda \, \mathrm{KL}(\operatorname{softmax}(l) \,\Vert\, 1 / K)

    L averaged over the vectors. In training the output is :math:`c_i` with the gradient of
    :math:`\sum_k p_k c_k` to the logits (straight through), or that sum itself; in eval it is the
    most probable code, without noise. Nothing is searched by distance: the codes learn from what
    uses the output.

    Args:
        dim: channels of the input and of a code.
        codebook_size: K, the number of codes.
        temperature: :math:`\tau`, above 0. Lower it in training by assigning the attribute (the
            papers go from 1 to 1/16); it is not in the state dict.
        hard: whether the output in training is one code, or the sum over all of them.
        kl_weight: :math:`\lambda`, which keeps the distributions wide and the codes in use.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Attributes:
        logits: the linear layer of w and b.
        codebook: c ``[K, dim]``, a parameter.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        All is done in float32 (float64 for float64), also in 16-bit models and under autocast.
        Deterministic given torch's random state, from which the noise's seed is drawn: backward
        makes it anew, and memory is O(N + K) beside a bounded work space. A row holding NaN or Inf
        gets index 0 and no gradient, and makes the loss NaN. In eval taming-transformers draws, as
        in training; here encoding twice gives the same codes twice.

    Source: 1611.01144 (Gumbel softmax); 2102.12092 (DALL-E), section 2.1 and appendix A.2.

    Example:
        >>> import torch, fastvq
        >>> vq = fastvq.GumbelVQ(dim=64, codebook_size=512, channel_dim=1)
        >>> quantized, indices, loss = vq(torch.randn(8, 64, 16, 16))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([8, 64, 16, 16]), torch.Size([8, 16, 16]), torch.Size([]))
    """

    def __init__(
        self,
        dim: int,
        codebook_size: int,
        *,
        temperature: float = 1.0,
        hard: bool = True,
        kl_weight: float = 5e-4,
        channel_dim: int = -1,
    ) -> None:
        super().__init__()
        _checks.positive("dim", dim)
        _checks.positive("codebook_size", codebook_size)
        _checks.fraction("temperature", temperature, high=float("inf"))
        if temperature == 0:
            raise ValueError("temperature must be above 0, got 0")
        _checks.fraction("kl_weight", kl_weight, high=float("inf"))
        self.dim, self.codebook_size, self.channel_dim = dim, codebook_size, channel_dim
        self.temperature, self.hard, self.kl_weight = temperature, hard, kl_weight
        self.logits = nn.Linear(dim, codebook_size)
        self.codebook = nn.Parameter(torch.randn(codebook_size, dim))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Quantized:
        """Quantizes x; draws in training.

        Args:
            x: vectors with ``dim`` channels in dimension ``channel_dim``.
            mask: bool, the shape of x without its channels; where false the position is padding:
                output 0, index -1, no loss, no gradient.
        """
        rows, keys, fault = self._inputs(x, mask)
        counted = fault == 0
        if mask is not None:
            counted = counted & mask.reshape(fault.shape)
        # a bad row is in no average, and yet it shows
        entropy = ops.entropy(rows, keys, metric="dot", counted=counted).sample
        divergence = torch.where(counted.any(), math.log(self.codebook_size) - entropy, 0)
        loss = self.kl_weight * divergence + fault.sum()
        codes = self.codebook.to(rows.dtype)
        if self.training:
            seed = torch.randint(_SEEDS, (), device="cpu")
            values = codes.detach() if self.hard else codes
            soft, indices = soft_choice(rows, keys, values, seed, float(self.temperature))
        else:
            indices, soft = self._best(rows, keys), None
        indices = torch.where(fault == 0, indices, 0)
        quantized = nn.functional.embedding(indices, codes)
        if soft is not None:
            soft = torch.where(counted.unsqueeze(-1), soft, 0)
            # the value of the code to the last bit, the gradient of the mean
            quantized = quantized + (soft - soft.detach()) if self.hard else soft
        if mask is not None:
            present = mask.reshape(fault.shape)
            indices = torch.where(present, indices, -1)
            quantized = torch.where(present.unsqueeze(-1), quantized, 0)
        quantized = quantized.to(x.dtype).reshape(_layout.rows_of(x, self.channel_dim).shape)
        quantized = _layout.vectors_out(quantized, x, self.channel_dim)
        return Quantized(quantized, indices.reshape(_layout.leading(x, self.channel_dim)), loss)

    def encode(self, x: Tensor) -> Tensor:
        """The most probable indices of x, int64: the shape of x without its channels."""
        rows, keys, fault = self._inputs(x, None)
        indices = torch.where(fault == 0, self._best(rows, keys), 0)
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

    def _inputs(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Rows ``[N, dim + 1]`` and keys ``[K, dim + 1]`` whose products are the logits, the bias
        among them; and ``[N]``, 0, or NaN where a row was not finite.
        """
        _layout.check_input(x, mask, self.dim, self.channel_dim)
        rows, fault = _layout.finite_rows(x, mask, self.channel_dim)
        keys = torch.cat([self.logits.weight, self.logits.bias.unsqueeze(-1)], dim=-1)
        return nn.functional.pad(rows, (0, 1), value=1.0), keys.to(rows.dtype), fault

    @staticmethod
    def _best(rows: Tensor, keys: Tensor) -> Tensor:
        return ops.nearest(rows, keys, metric="dot").indices

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, "
            f"temperature={self.temperature}, hard={self.hard}, kl_weight={self.kl_weight}, "
            f"channel_dim={self.channel_dim}"
        )
