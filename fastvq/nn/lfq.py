# SPDX-License-Identifier: Apache-2.0
"""``LFQ``: lookup-free quantization, a code of signs."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.nn._bit_entropy import batch_entropy, bit_entropies
from fastvq.nn._grid import GridQuantizer

# a bit this sure has entropy 0 in every dtype; beyond it a logit of Inf would make it NaN
_SURE = 1000.0
_MOST_GROUP_BITS = 24


class LFQ(GridQuantizer):
    r"""Replaces every channel by its sign; an entropy loss keeps the codes in use.

    A vector z of :math:`\log_2 K` channels has the code :math:`c = \operatorname{sign}(z)` (-1
    where 0), whose bits, the first channel highest, are the index. With
    :math:`p(c \mid z) \propto \exp(-\tau \lVert z - c \rVert^2)` over all K codes,

    .. math:: L = w \left( \operatorname{E}_n[H(p(c \mid z_n))]
              - \gamma \, H(\operatorname{E}_n[p(c \mid z_n)]) \right)
              + \beta \lVert z - \operatorname{sg}[c] \rVert^2

    in nats, the last term averaged over the elements: each vector is to be sure of its code, and
    all codes are to be used. The gradient of the output passes to z unchanged.

    The first entropy is exact: p is a product of independent bits, and its entropy the sum of
    theirs. The second is exact, over all K codes, up to :math:`K = 2^g` with g = ``group_bits``.
    Beyond that it is an approximation, the sum of the entropies of ``ceil(log2(K) / g)`` groups of
    neighbouring bits, which is never less than the entropy of all bits and equals it where the
    groups are independent over the batch.

    Args:
        codebook_size: K, a power of two.
        dim: channels of the input, :math:`\log_2 K` unless given. Where it is not, linear
            projections go in and out.
        entropy_weight: w.
        diversity: :math:`\gamma`.
        commitment_weight: :math:`\beta`. The terms have the scale of the codes and not of the data:
            beside a reconstruction loss of a few hundredths 0.25 lets most codes die.
        inverse_temperature: :math:`\tau`.
        group_bits: g. The cost of the batch's entropy is :math:`N \, 2^g` multiplications a group
            in matrix products, its memory O(N + K).
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        The output has the dtype of x; indices and losses are of float32 arithmetic (float64 for
        float64) also in 16-bit models and under autocast, on every device. Deterministic. A row
        holding NaN or Inf gets index 0, is in no average and makes the loss NaN. In training with
        several processes the batch is that of all. The loss is the same in eval.

    Source: 2310.05737 (MAGVIT-v2), section 3.1; groups of bits, 2406.07548, section 4.

    Example:
        >>> import torch, fastvq
        >>> lfq = fastvq.LFQ(2**18, dim=64, channel_dim=1)
        >>> quantized, indices, loss = lfq(torch.randn(2, 64, 8, 8))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 64, 8, 8]), torch.Size([2, 8, 8]), torch.Size([]))
    """

    def __init__(
        self,
        codebook_size: int,
        dim: int | None = None,
        *,
        entropy_weight: float = 0.1,
        diversity: float = 1.0,
        commitment_weight: float = 0.02,
        inverse_temperature: float = 100.0,
        group_bits: int = 18,
        channel_dim: int = -1,
    ) -> None:
        _checks.positive("codebook_size", codebook_size)
        bits = (codebook_size - 1).bit_length()
        if codebook_size != 1 << bits or bits == 0:
            raise ValueError(
                f"codebook_size must be a power of two, 2 or more, got {codebook_size}; "
                f"the next one is {1 << max(bits, 1)}"
            )
        for name, value in (
            ("entropy_weight", entropy_weight),
            ("diversity", diversity),
            ("commitment_weight", commitment_weight),
            ("inverse_temperature", inverse_temperature),
        ):
            _checks.fraction(name, value, high=float("inf"))
        _checks.positive("group_bits", group_bits)
        if group_bits > _MOST_GROUP_BITS:
            raise ValueError(f"group_bits must be at most {_MOST_GROUP_BITS}, got {group_bits}")
        super().__init__([2] * bits, [1 << j for j in reversed(range(bits))], dim, channel_dim)
        self.bits, self.group_bits = bits, group_bits
        self.entropy_weight, self.diversity = entropy_weight, diversity
        self.commitment_weight, self.inverse_temperature = commitment_weight, inverse_temperature

    @property
    def scale(self) -> float:
        """The size of a channel of a code."""
        return 1.0

    def _cut(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        digits = z > 0
        return z, self._values(digits, z.dtype), self._number(digits)

    def _values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        return (2 * digits.to(dtype) - 1) * self.scale

    def _loss(self, soft: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        return self.loss_at(self.scale, soft, codes, counted)

    def loss_at(self, scale: float, soft: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        """The loss of vectors and their codes ``[B, M, d]``, whose channels have this size.

        Args:
            scale: the size of a channel of a code.
            soft: the vectors, finite.
            codes: their codes.
            counted: bool ``[B, M]``, the vectors that are in the averages.
        """
        weights = counted.to(soft.dtype).flatten()  # [N]
        count = weights.sum().clamp_min(1)
        apart = ((soft - codes).square().mean(-1).flatten() * weights).sum() / count
        # -tau |z - c|^2 of a bit's two values differ by 4 tau scale z
        logits = (4 * self.inverse_temperature * scale * soft).clamp(-_SURE, _SURE)
        logits = logits.flatten(0, 1)  # [N, log2 K]
        unsure = (bit_entropies(logits).sum(-1) * weights).sum() / count
        spread = batch_entropy(logits, weights, self.group_bits, share=self.training)
        entropy = unsure - self.diversity * spread
        return self.entropy_weight * entropy + self.commitment_weight * apart

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{super().extra_repr()}, codebook_size={self.codebook_size}, "
            f"entropy_weight={self.entropy_weight}, diversity={self.diversity}, "
            f"commitment_weight={self.commitment_weight}, "
            f"inverse_temperature={self.inverse_temperature}, group_bits={self.group_bits}"
        )
