# SPDX-License-Identifier: Apache-2.0
"""What the caches of the two-stream priors share: windows of rows, convolutions as matrices."""

from __future__ import annotations

from torch import Tensor, nn


def push_row(window: Tensor, row: Tensor, reach: int) -> None:
    """Moves ``window [B, C, R, W + 2 reach]`` up by one row and writes ``row [B, C, W]`` below."""
    window[:, :, :-1] = window[:, :, 1:].clone()
    window[:, :, -1, reach:-reach] = row


def affine(convolution: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """The matrix and the bias of a convolution of one row."""
    bias = convolution.bias
    assert bias is not None
    return matrix(convolution.weight), bias.detach()


def matrix(weight: Tensor) -> Tensor:
    """A kernel ``[O, C, 1, T]`` as the matrix ``[T C, O]`` that multiplies T columns of C."""
    return weight.detach()[:, :, 0].permute(2, 1, 0).reshape(-1, weight.shape[0]).contiguous()
