# SPDX-License-Identifier: Apache-2.0
"""Grids made smaller and larger, one matrix product a dimension: any number of dimensions, and the
same bits every time, where the gradients of torch's own interpolation are sums of atomics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Mode = Literal["area", "bicubic"]


def resample(x: Tensor, size: Sequence[int], mode: Mode) -> Tensor:
    """x ``[B, C, *spatial]`` as ``[B, C, *size]``, as torch's interpolation of that mode has it.

    ``area`` takes the mean of the places that a cell touches. ``bicubic`` is cubic convolution in
    each dimension in turn, with a = -0.75, cells aligned at their centres and edges repeated.
    """
    for axis, target in enumerate(size, start=2):
        if x.shape[axis] != target:
            matrix = _matrix(x.shape[axis], target, mode, x)
            x = (x.movedim(axis, -1) @ matrix).movedim(-1, axis)
    return x


def _matrix(source: int, target: int, mode: Mode, like: Tensor) -> Tensor:
    """The weights ``[source, target]``."""
    # what becomes of each unit vector, in two dimensions as torch has its bicubic there alone
    units = torch.eye(source, dtype=torch.float64, device=like.device).view(1, source, source, 1)
    image = torch.nn.functional.interpolate(units, size=(target, 1), mode=mode)
    return image.view(source, target).to(like.dtype)
