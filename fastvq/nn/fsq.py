# SPDX-License-Identifier: Apache-2.0
"""``FSQ``: finite scalar quantization."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.nn._grid import GridQuantizer

# the bound reaches this fraction beyond the outermost level, so that the level is reachable
_MARGIN = 1e-3
# beyond this float32's tanh has no longer a value for each level
_MOST_LEVELS = 1 << 16


class FSQ(GridQuantizer):
    r"""Bounds every channel and rounds it to one of a few levels; nothing is learned or looked up.

    With L levels in a channel, :math:`h = (L - 1)(1 + \epsilon) / 2` (at most 1/4 beyond
    (L - 1) / 2) and an offset o of 1/2 where L is even (0 where odd), so that 0 is a level,

    .. math:: b = h \tanh(z + \operatorname{artanh}(o / h)) - o, \qquad
              q = \operatorname{round}(b) / \lfloor L / 2 \rfloor, \qquad
              i = \sum_j (\operatorname{round}(b_j) + \lfloor L_j / 2 \rfloor) \prod_{l < j} L_l

    The gradient of the output is that of b (straight through the rounding). There is nothing to
    keep the codes in use, and the loss is zero.

    Args:
        levels: the number of levels of each channel, 3 to 65536; the paper has ``[8, 6, 5]`` for
            2^8 codes, ``[8, 5, 5, 5]`` for 2^10, ``[7, 5, 5, 5, 5]`` for 2^12,
            ``[8, 8, 8, 6, 5]`` for 2^14 and ``[8, 8, 8, 5, 5, 5]`` for 2^16.
        dim: channels of the input, ``len(levels)`` unless given. Where it is not, linear
            projections go in and out.
        channel_dim: the dimension of the channels: -1, or 1 for images, audio and video.

    Attributes:
        codebook_size: the product of the levels, below 2^63. The codes are never stored:
            ``decode(torch.arange(codebook_size))`` makes them where that many fit.

    Raises:
        TypeError, ValueError: an argument or input does not fit; the text says what was expected.

    Note:
        The output has the dtype of x; levels and indices are exact whatever it is. Deterministic.
        A row holding NaN or Inf gets index 0 and no gradient, and makes the loss NaN. Memory O(N).
        The paper's code has :math:`(1 - \epsilon)` and :math:`\tan` in place of artanh, which sends
        0 near the level 0 and not onto it; here it is as in vector-quantize-pytorch, whose indices
        these are. A channel of two levels is a bit: see :class:`LFQ`.

    Source: 2309.15505, section 3.1 and appendix A.1.

    Example:
        >>> import torch, fastvq
        >>> fsq = fastvq.FSQ([8, 6, 5], dim=64, channel_dim=1)
        >>> quantized, indices, loss = fsq(torch.randn(8, 64, 16, 16))
        >>> quantized.shape, indices.shape, fsq.codebook_size
        (torch.Size([8, 64, 16, 16]), torch.Size([8, 16, 16]), 240)
    """

    def __init__(
        self, levels: Sequence[int], dim: int | None = None, *, channel_dim: int = -1
    ) -> None:
        counts = tuple(levels)
        if not counts:
            raise ValueError("levels must hold at least one number, got none")
        places, place = [], 1
        for count in counts:
            _checks.positive("each of levels", count)
            if not 3 <= count <= _MOST_LEVELS:
                hint = "; a channel of two levels is a bit: use LFQ" if count == 2 else ""
                raise ValueError(
                    f"each of levels must be in [3, {_MOST_LEVELS}], got {count}{hint}"
                )
            places.append(place)
            place *= count
        super().__init__(counts, places, dim, channel_dim)
        self.levels = counts

    def _cut(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = self._levels // 2
        levels = self._levels.to(z.dtype)
        # at most a quarter, for from a thousand levels on the margin would reach the next one
        reach = (levels - 1) / 2 + torch.clamp((levels - 1) * _MARGIN / 2, max=0.25)
        offset = (1 - levels % 2) / 2
        bounded = torch.tanh(z + torch.atanh(offset / reach)) * reach - offset
        steps = bounded.detach().round()
        # the digits are steps + half, of which the second part is the same for all
        indices = self._number(steps) + self._number(half)
        return bounded / half, steps / half, indices

    def _values(self, digits: Tensor, dtype: torch.dtype) -> Tensor:
        half = self._levels // 2
        return (digits - half).to(dtype) / half

    def _loss(self, soft: Tensor, codes: Tensor, counted: Tensor) -> Tensor:
        return soft.new_zeros(())

    def extra_repr(self) -> str:
        """The arguments."""
        return f"levels={self.levels}, {super().extra_repr()}"
