# SPDX-License-Identifier: Apache-2.0
"""The convolutions of :class:`MultiScaleVQ`, each shared by neighbouring scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# how much of what a scale adds has been through its convolution; the authors' value for all models
_SMOOTHED = 0.5


class Smoothing(nn.ModuleList):
    """What a scale adds, half of it through the convolution nearest to the scale.

    Args:
        count: convolutions, at most one a scale; 0 for none, and nothing changes.
        dim: channels.
        scales: the resolutions, all of as many axes.
    """

    def __init__(self, count: int, dim: int, scales: Sequence[Sequence[int]]) -> None:
        kind = _CONVOLUTIONS[len(scales[0])]
        layers = [kind(dim, dim, 3, padding=1) for _ in range(min(count, len(scales)))]
        for layer in layers:
            # what is added starts as the codes themselves, for which k-means starts the codebook
            nn.init.dirac_(layer.weight)
            nn.init.zeros_(layer.get_parameter("bias"))
        super().__init__(layers)
        self.scales = len(scales)

    def forward(self, code: Tensor, scale: int) -> Tensor:
        """``[B, C, *size]`` smoothed, in its dtype whatever that of the weights."""
        if not len(self):
            return code
        layer = self[nearest_tick(scale, self.scales, len(self))]
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        assert layer.bias is not None
        convolve = getattr(nn.functional, f"conv{code.ndim - 2}d")
        weight, bias = layer.weight.to(code.dtype), layer.bias.to(code.dtype)
        smooth: Tensor = convolve(code, weight, bias, padding=1)
        return torch.lerp(code, smooth, _SMOOTHED)


def nearest_tick(scale: int, scales: int, convolutions: int) -> int:
    """Which of the convolutions a scale has: their places are spread evenly over the scales."""
    place = scale / max(scales - 1, 1)
    # the authors' spread, which differs at four: checkpoints depend on it
    margin = 1 / (3 if convolutions == 4 else 2) / convolutions
    step = (1 - margin - margin) / max(convolutions - 1, 1)
    # the last one apart, as ends have it there: a tie of two ticks is decided by the last bit
    ticks = [*(step * k + margin for k in range(convolutions - 1)), 1 - margin]
    return min(range(convolutions), key=lambda k: abs(ticks[k] - place))
