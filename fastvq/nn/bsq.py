# SPDX-License-Identifier: Apache-2.0
"""``BSQ``: binary spherical quantization, a code of signs on the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq.nn.lfq import LFQ


class BSQ(LFQ):
    r""":class:`LFQ` on the unit sphere: vectors are normalized, and so are the codes.

    .. math:: u = z / \lVert z \rVert, \qquad c = \operatorname{sign}(u) / \sqrt{\log_2 K}

    and all of :class:`LFQ` with u for z: arguments, loss, what of it is exact, notes. The error of
    a code is bounded, :math:`\lVert u - c \rVert^2 < 2`, whatever the encoder does. The gradient of
    the output passes to u unchanged, and through the normalization to z.

    Source: 2406.07548, section 4.

    Example:
        >>> import torch, fastvq
        >>> bsq = fastvq.BSQ(2**18, dim=64)
        >>> quantized, indices, loss = bsq(torch.randn(2, 100, 64))
        >>> quantized.shape, indices.shape, loss.shape
        (torch.Size([2, 100, 64]), torch.Size([2, 100]), torch.Size([]))
    """

    @property
    def scale(self) -> float:
        """The size of a channel of a code."""
        return float(self.bits**-0.5)

    def _cut(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return super()._cut(torch.nn.functional.normalize(z, dim=-1))
