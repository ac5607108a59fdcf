# SPDX-License-Identifier: Apache-2.0
"""The first codes of grids that are to be continued."""

from __future__ import annotations

import math

from torch import Tensor

from fastvq.priors.base import check_int64, check_range


def in_raster_order(prefix: Tensor, batch: int, shape: tuple[int, ...], num_codes: int) -> Tensor:
    """The given codes of each grid, int64 ``[B, n]`` with n at most the positions of a grid.

    Args:
        prefix: int64 ``[B, n]`` in raster order, or ``[B, n, *shape[1:]]``, n slices along the
            first axis.
        batch: B.
        shape: sizes of a grid.
        num_codes: K.

    Raises:
        TypeError, ValueError: another dtype or shape, more codes than positions, a code out of its
            range.
    """
    check_int64("prefix", prefix)
    slices = prefix.ndim > 2
    if prefix.ndim < 2 or len(prefix) != batch or (slices and prefix.shape[2:] != shape[1:]):
        sizes = ", ".join(str(size) for size in (batch, "n", *shape[1:]))
        wanted = f"[{batch}, n] or [{sizes}]" if shape[1:] else f"[{batch}, n]"
        raise ValueError(f"prefix must be {wanted}, got {list(prefix.shape)}")
    most = shape[0] if slices else math.prod(shape)
    if prefix.shape[1] > most:
        raise ValueError(f"prefix must have at most n = {most}, got {list(prefix.shape)}")
    check_range("prefix", prefix, "K", num_codes)
    return prefix.flatten(1)
