# SPDX-License-Identifier: Apache-2.0
"""The pieces of encoders and decoders, for signals (1-d), images (2-d) and video (3-d).

One set of blocks serves all three: ``spatial_dims`` picks the convolution. Channels come first,
``[B, C, L]``, ``[B, C, H, W]`` or ``[B, C, T, H, W]``.
"""

from __future__ import annotations

from torch import Tensor, nn

_CONVOLUTION = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def convolution(spatial_dims: int, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution of stride 1 that keeps the size; ``kernel`` is odd."""
    return _CONVOLUTION[spatial_dims](inputs, outputs, kernel, padding=kernel // 2)


def down(spatial_dims: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    """A strided convolution: ``[B, inputs, L] -> [B, outputs, L / stride]`` in every axis.

    The kernel spans two strides (4x4 at stride 2), as in the paper. L must be a multiple of stride.
    """
    padding = (stride + 1) // 2
    return _CONVOLUTION[spatial_dims](inputs, outputs, 2 * stride, stride, padding)


def up(spatial_dims: int, inputs: int, outputs: int, stride: int) -> nn.Module:
    """The mirror of `down`, transposed: ``[B, inputs, L] -> [B, outputs, L * stride]``."""
    padding = (stride + 1) // 2
    # an odd stride cannot be padded evenly: one more sample at the end gives exactly L * stride
    return _TRANSPOSED[spatial_dims](inputs, outputs, 2 * stride, stride, padding, stride % 2)


class ResidualBlock(nn.Module):
    """``x + conv1(relu(conv3(relu(x))))``: 3-wide into ``hidden`` channels, 1-wide back.

    Source: section 4.1 of "Neural Discrete Representation Learning" (arXiv 1711.00937).
    """

    def __init__(self, spatial_dims: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(),
            convolution(spatial_dims, channels, hidden, 3),
            nn.ReLU(),
            convolution(spatial_dims, hidden, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, ...] -> [B, channels, ...]``."""
        out: Tensor = x + self.body(x)
        return out


def residual_stack(spatial_dims: int, channels: int, hidden: int, depth: int) -> nn.Sequential:
    """``depth`` residual blocks and the ReLU that closes them."""
    blocks = [ResidualBlock(spatial_dims, channels, hidden) for _ in range(depth)]
    return nn.Sequential(*blocks, nn.ReLU())
