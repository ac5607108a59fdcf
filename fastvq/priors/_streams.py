# SPDX-License-Identifier: Apache-2.0
"""Where the two streams of the convolutional priors over images begin."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fastvq.priors._positions import POSITION_FEATURES, position_features


class Streams(NamedTuple):
    """What is known above a position and what is known to its left, both ``[B, C, H, W]``."""

    vertical: Tensor
    horizontal: Tensor


class InputStreams(nn.Module):
    """The input layer: the codes strictly above and strictly to the left, and the position.

    Args:
        channels: C of the embedded codes and of both streams.
        kernel_size: odd width of the square neighbourhood whose causal part is seen.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.reach = kernel_size // 2
        self.above = nn.Conv2d(channels, channels, (self.reach, kernel_size))
        self.left = nn.Conv2d(channels, channels, (1, self.reach))
        self.position = nn.Linear(POSITION_FEATURES, 2 * channels)

    def forward(self, embedded: Tensor) -> Streams:
        """The streams of embedded codes ``[B, C, H, W]``."""
        reach = self.reach
        above = self.above(F.pad(embedded[:, :, :-1], (reach, reach, reach, 0)))
        left = self.left(F.pad(embedded[..., :-1], (reach, 0)))
        down, right = self.positions(embedded.shape[2], embedded.shape[3])
        return Streams(above + down, left + right)

    def positions(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What the position adds to the vertical and the horizontal stream, each ``[C, H, W]``."""
        features = position_features(height, width, self.position.weight)
        down, right = self.position(features).permute(2, 0, 1).chunk(2)
        return down, right
