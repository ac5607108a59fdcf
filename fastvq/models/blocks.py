# SPDX-License-Identifier: Apache-2.0
"""The pieces of encoders and decoders, for signals (1-d), images (2-d) and video (3-d).

One set of blocks serves all three: ``spatial_dims`` picks the convolution. Channels come first,
``[B, C, L]``, ``[B, C, H, W]`` or ``[B, C, T, H, W]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

# by axes; typed loosely, for torch's hints allow a tuple for several axes only of known length
_CONVOLUTION: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def convolution(spatial_dims: int, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution of stride 1 that keeps the size; ``kernel`` is odd."""
    layer: nn.Module = _CONVOLUTION[spatial_dims](inputs, outputs, kernel, padding=kernel // 2)
    return layer


def down(spatial_dims: int, inputs: int, outputs: int, stride: int | Sequence[int]) -> nn.Module:
    """A strided convolution: ``[B, inputs, L] -> [B, outputs, L / stride]`` in every axis.

    The kernel spans two strides (4x4 at stride 2), as in the paper, and three samples of an axis
    whose stride is 1. L must be a multiple of stride, which is one for all axes or one for each.
    """
    strides = _each(stride, spatial_dims)
    kernels = [_span(s) for s in strides]
    paddings = [(s + 1) // 2 for s in strides]
    return _CONVOLUTION[spatial_dims](inputs, outputs, kernels, strides, paddings)


def up(spatial_dims: int, inputs: int, outputs: int, stride: int | Sequence[int]) -> nn.Module:
    """The mirror of `down`, transposed: ``[B, inputs, L] -> [B, outputs, L * stride]``."""
    strides = _each(stride, spatial_dims)
    kernels = [_span(s) for s in strides]
    paddings = [(s + 1) // 2 for s in strides]
    # an odd stride cannot be padded evenly: one more sample at the end gives exactly L * stride
    extra = [s % 2 if s > 1 else 0 for s in strides]
    return _TRANSPOSED[spatial_dims](inputs, outputs, kernels, strides, paddings, extra)


def _each(stride: int | Sequence[int], spatial_dims: int) -> list[int]:
    return [stride] * spatial_dims if isinstance(stride, int) else list(stride)


def _span(stride: int) -> int:
    return 2 * stride if stride > 1 else 3


class ResidualBlock(nn.Module):
    """``x + conv1(relu(conv(relu(x))))``: ``kernel`` wide into ``hidden`` channels, 1-wide back.

    Source: section 4.1 of "Neural Discrete Representation Learning" (arXiv 1711.00937), with a
    kernel of 3.
    """

    def __init__(self, spatial_dims: int, channels: int, hidden: int, kernel: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            convolution(spatial_dims, channels, hidden, kernel),
            nn.ReLU(),
            convolution(spatial_dims, hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, ...] -> [B, channels, ...]``."""
        out: Tensor = x + self.body(x)
        return out


def residual_stack(
    spatial_dims: int, channels: int, hidden: int, depth: int, kernel: int = 3
) -> nn.Sequential:
    """``depth`` residual blocks and the ReLU that closes them."""
    blocks = [ResidualBlock(spatial_dims, channels, hidden, kernel) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.ReLU())
