# SPDX-License-Identifier: Apache-2.0
"""Self-attention over a grid of any number of axes and any size."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# wavelengths of the rotations run from 2 pi positions to about this many times that
_LONGEST = 100.0


class SelfAttention(nn.Module):
    r"""``x + out(attention(norm(x)))``: every position of the grid looks at every other.

    Positions enter as rotations of queries and keys (RoPE), the channels of a head shared out
    evenly among the axes: the score of two positions depends on their offset in each axis, and a
    grid of any size will do. Memory is O(positions) where torch has a fused kernel for
    ``scaled_dot_product_attention``, as on CPUs and current GPUs.

    Args:
        spatial_dims: axes of the grid.
        channels: of ``x``, a multiple of ``2 * spatial_dims * heads``.
        heads: attention heads.

    Source: rotations, 2104.09864 (RoFormer), section 3.2; attention at the coded resolution,
    1906.00446, section 3.2, and 2012.09841 (VQGAN), appendix A.
    """

    def __init__(self, spatial_dims: int, channels: int, heads: int) -> None:
        super().__init__()
        self.spatial_dims, self.heads = spatial_dims, heads
        self.norm = nn.LayerNorm(channels)
        # a bias of the keys would change no score, and never get a gradient
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, channels, *grid] -> [B, channels, *grid]``."""
        rows = self.norm(x.flatten(2).transpose(1, 2))  # [B, M, channels]
        split = self.qkv(rows).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = split.unbind(0)  # [B, heads, M, d] each
        angles = grid_angles(x.shape[2:], queries.shape[-1], x.device)
        mixed = F.scaled_dot_product_attention(
            rotated(queries, angles), rotated(keys, angles), values
        )
        update = self.out(mixed.transpose(1, 2).flatten(2))
        out: Tensor = x + update.transpose(1, 2).unflatten(2, x.shape[2:])
        return out


def grid_angles(size: torch.Size, channels: int, device: torch.device) -> Tensor:
    """Rotation angles float32 ``[M, channels / 2]`` of the positions of a grid in raster order."""
    pairs = channels // (2 * len(size))
    exponents = torch.arange(pairs, dtype=torch.float32, device=device) / pairs
    frequencies = _LONGEST**-exponents
    axes = [torch.arange(n, dtype=torch.float32, device=device) for n in size]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1)  # [*size, axes]
    return (places.unsqueeze(-1) * frequencies).flatten(-2).flatten(0, -2)


def rotated(vectors: Tensor, angles: Tensor) -> Tensor:
    """Each pair (first half, second half) of the channels ``[..., M, d]`` turned by its angle."""
    cosine, sine = angles.cos().to(vectors.dtype), angles.sin().to(vectors.dtype)
    first, second = vectors.chunk(2, -1)
    return torch.cat([first * cosine - second * sine, first * sine + second * cosine], -1)
