# SPDX-License-Identifier: Apache-2.0
"""How every quantizer sees its input: as rows ``[B, M, dim]``, whatever the layout; and back."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import compute_dtype


def check_input(x: Tensor, mask: Tensor | None, dim: int, channel_dim: int) -> None:
    """Raises unless x has ``dim`` channels there and the mask is bool of its other dimensions."""
    _checks.floating("x", x)
    if not -x.ndim <= channel_dim < x.ndim or x.shape[channel_dim] != dim:
        raise ValueError(
            f"x must have dim = {dim} channels in dimension channel_dim = {channel_dim}, "
            f"got {_checks.shape(x)}"
        )
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"mask must be a tensor, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {_checks.dtype_name(mask)}")
    wanted = list(leading(x, channel_dim))
    if _checks.shape(mask) != wanted:
        raise ValueError(
            f"mask must be {wanted}, the shape of x without its channels, got {_checks.shape(mask)}"
        )


def leading(x: Tensor, channel_dim: int) -> torch.Size:
    """The shape of x without its channels."""
    axis = channel_dim % x.ndim
    return x.shape[:axis] + x.shape[axis + 1 :]


def rows_of(x: Tensor, channel_dim: int) -> Tensor:
    """x as ``[B, M, dim]``, a view wherever one exists."""
    # flat before the channels move, which is also the order that torch.compile can follow
    if x.ndim > 3:
        x, channel_dim = _moved(x, channel_dim, 1).flatten(2), 1
    rows = _moved(x, channel_dim, -1)
    return rows if rows.ndim == 3 else rows.reshape(1, -1, rows.shape[-1])


def vectors_out(rows: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """Rows ``[B, M, dim]`` in the shape of x."""
    if x.ndim > 3:
        shape = _moved(x, channel_dim, 1).shape
        return _moved(rows.movedim(-1, 1).reshape(shape), 1, channel_dim)
    if x.ndim < 3:
        rows = rows.reshape(*leading(x, channel_dim), rows.shape[-1])
    return _moved(rows, -1, channel_dim)


def _moved(x: Tensor, source: int, target: int) -> Tensor:
    # a view of nothing new costs its time all the same, and again in backward
    return x if source % x.ndim == target % x.ndim else x.movedim(source, target)


def indices_out(indices: Tensor, x: Tensor, channel_dim: int) -> Tensor:
    """Indices ``[B, M, Q]``, or ``[N, Q]``, in the shape of x: ``[..., Q]``."""
    return indices.reshape(*leading(x, channel_dim), indices.shape[-1])


def finite_rows(x: Tensor, mask: Tensor | None, channel_dim: int) -> tuple[Tensor, Tensor]:
    """Rows ``[N, dim]`` in the computing dtype, zero where padding or not finite; and ``[N]``, 0,
    or NaN where a row was not finite.
    """
    rows = rows_of(x, channel_dim).flatten(0, 1)
    if mask is not None:
        rows = torch.where(mask.reshape(-1, 1), rows, 0)
    rows = rows.to(compute_dtype(rows))
    fault = (rows.detach() - rows.detach()).sum(-1)
    return torch.where((fault == 0).unsqueeze(-1), rows, 0), fault


def decoded(vectors: Tensor, channel_dim: int) -> Tensor:
    """Vectors ``[..., dim]`` with their channels in dimension ``channel_dim``."""
    # contiguous, as forward's output is for contiguous input: what follows then has the same
    # layout, and so the same bits, either way
    return vectors.movedim(-1, channel_dim).contiguous()
