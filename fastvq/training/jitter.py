# SPDX-License-Identifier: Apache-2.0
"""Training images turned, scaled, slanted and moved a little: more data out of the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Jitter:
    """How far an image may be moved; each amount is drawn uniformly, in both directions.

    Attributes:
        rotate: largest angle in degrees, of the turn and, drawn apart, of the slant.
        zoom: largest change of scale, as a fraction.
        shift: largest move in pixels, along each axis.
    """

    rotate: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        for name, bound in (("rotate", 45.0), ("zoom", 1.0), ("shift", math.inf)):
            value = getattr(self, name)
            if not 0 <= value < bound:
                raise ValueError(f"{name} must be in [0, {bound:g}), got {value}")

    @property
    def moves(self) -> bool:
        """Whether anything is moved at all."""
        return bool(self.rotate or self.zoom or self.shift)


def jittered(
    images: Tensor,
    jitter: Jitter,
    generator: torch.Generator | None = None,
    *,
    peak: int | None = None,
) -> Tensor:
    """Applies a random affine map to each image: bicubic, edges repeated, clamped to [0, 1].

    Args:
        images: float32 ``[B, C, H, W]`` in [0, 1].
        jitter: how far.
        generator: source of the random numbers, torch's own by default.
        peak: bring every value back to the nearest of the levels 0, 1 / peak, ..., 1.

    Returns:
        New images of the same shape.
    """
    count, _, height, width = images.shape
    draws = 2 * torch.rand(5, count, generator=generator) - 1
    angle, slant = draws[:2] * math.radians(jitter.rotate)
    scale = 1 + draws[2] * jitter.zoom
    # the grid spans 2 from edge to edge
    right = draws[3] * jitter.shift * 2 / width
    below = draws[4] * jitter.shift * 2 / height
    sine, cosine = scale * angle.sin(), scale * angle.cos()
    rows = torch.stack([cosine, slant - sine, right], -1), torch.stack([sine, cosine, below], -1)
    maps = torch.stack(rows, 1)  # [B, 2, 3]
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
    moved = moved.clamp(0, 1)
    return moved if peak is None else (moved * peak).round() / peak
