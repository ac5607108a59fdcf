# SPDX-License-Identifier: Apache-2.0
"""``ResidualFSQ``: finite scalar quantizers in a row, each finer than the one before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.nn._residual_grid import ResidualGrid


class ResidualFSQ(ResidualGrid):
    r"""Bounds every channel and rounds it Q times, each time what the time before left over.

    With L levels in a channel and :math:`c = L / (L - 1)`,

    .. math:: r_1 = c \tanh(z / c), \qquad
              j_q = \lfloor (L - 1) (L^{q - 1} r_q + 1) / 2 + 1/2 \rfloor
              \text{ within } [0, L - 1], \qquad
              v_q = L^{1 - q} \left( \frac{2 j_q}{L - 1} - 1 \right), \qquad r_{q+1} = r_q - v_q

    The output is :math:`\sum_q v_q`, its gradient that of :math:`r_1`. The factor 1 / L between
    levels makes the sums of a channel :math:`L^Q` evenly spaced values, each reached in one way, so
    that the digits :math:`j_q` are those of one number in base L, the coarsest first. There is
    nothing to keep the codes in use, and the loss is zero.

    Args:
        levels: the number of levels of each channel, 2 or more; 0 is a level where it is odd.
        num_quantizers: Q, with ``max(levels) ** Q`` at most 2^24.
        dim: channels of the input, ``len(levels)`` unless given. Where it is not, linear
            projections go in and out.
        dropout: the probability, in training, that a sample of the batch takes only the first n
            quantizers, n uniform in 1 to Q; the others have index -1.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Attributes:
        codebook_size: the product of the levels: the codes of one quantizer.

    In :meth:`forward` and :meth:`encode`, as in all residual quantizers, ``levels`` is how many of
    the Q quantizers are taken.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        The output has the dtype of x; the arithmetic is that of float32 (float64 for float64)
        whatever it is. Deterministic given torch's random state, which dropout draws from. A row
        holding NaN or Inf gets index 0 and no gradient, and makes the loss NaN. Memory O(N Q).
        Indices are those of vector-quantize-pytorch's ResidualFSQ; the gradient there is Q times
        this one, for each level passes it on.

    Source: 2309.15505, section 3.1; levels that are symmetric, 2411.19842, section 3.2.

    Example:
        >>> import torch, fastvq
        >>> fsq = fastvq.ResidualFSQ([8, 5, 5, 3], num_quantizers=4, dim=64)
        >>> quantized, indices, loss = fsq(torch.randn(2, 100, 64))
        >>> quantized.shape, indices.shape, fsq.codebook_size
        (torch.Size([2, 100, 64]), torch.Size([2, 100, 4]), 600)
    """

    def __init__(
        self,
        levels: Sequence[int],
        num_quantizers: int,
        dim: int | None = None,
        *,
        dropout: float = 0.0,
        channel_dim: int = -1,
    ) -> None:
        counts = tuple(levels)
        if not counts:
            raise ValueError("levels must hold at least one number, got none")
        places, place = [], 1
        for count in counts:
            _checks.positive("each of levels", count)
            if count < 2:
                raise ValueError(f"each of levels must be at least 2, got {count}")
            places.append(place)
            place *= count
        super().__init__(counts, places, num_quantizers, dim, dropout, channel_dim)
        self.levels = counts

    def _cut(self, u: Tensor) -> Tensor:
        top = (self._levels - 1).to(u.dtype)
        # the bound reaches half a step beyond the outermost levels, and rounding may pass it
        return torch.minimum(torch.floor((u + 1) * (top / 2) + 0.5).clamp_min(0), top)

    def _loss(self, grid: int, rest: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        return rest.new_zeros(())

    def extra_repr(self) -> str:
        """The arguments."""
        return f"levels={self.levels}, {super().extra_repr()}"
