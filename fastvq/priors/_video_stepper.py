# SPDX-License-Identifier: Apache-2.0
"""The cache of a :class:`VideoPixelCNN`: its encoder once a frame, its frame code by code."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastvq.priors.video import FrameLayer, VideoPixelCNN


class VideoPixelCNNStepper:
    """Logits of one position after another: the encoder once a frame, then the cache of its prior.

    Every layer of the encoder keeps its inputs of as many frames as it looks back, so that a frame
    costs the same whatever its number. Nothing is approximated: the logits equal those of the full
    forward up to the rounding of another order of summation.

    Args:
        prior: in eval mode.
        batch: B, videos drawn together.
        shape: frames, height and width of a video in codes.
        labels: int64 ``[B]``, or ``None``.
        context: ``[B, context_channels, T, H, W]``, or ``None`` for a prior without.

    Raises:
        RuntimeError: the prior is in training mode, where dropout would make every answer another.
    """

    @torch.no_grad()
    def __init__(
        self,
        prior: VideoPixelCNN,
        batch: int,
        shape: tuple[int, int, int],
        labels: Tensor | None,
        context: Tensor | None,
    ) -> None:
        prior.check_evaluating()
        self._prior, self._labels, self._context = prior, labels, context
        self._layers = cast("list[FrameLayer]", list(prior.layers))
        weight, self._size = prior.embedding.weight, shape[1:]
        channels = weight.shape[1]
        self._inputs = [
            weight.new_zeros(batch, channels, layer.dilation, *self._size) for layer in self._layers
        ]
        self._codes = torch.zeros(batch, *self._size, dtype=torch.int64, device=weight.device)
        self._frames, self._frame, self._position = shape[0], 0, 0
        self._start_frame()

    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position."""
        return self._stepper.logits()

    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]``, int64, of the position just asked for and moves on."""
        self._stepper.append(codes)
        self._codes.flatten(1)[:, self._position] = codes
        self._position += 1
        if self._position == self._codes[0].numel():
            self._frame, self._position = self._frame + 1, 0
            if self._frame < self._frames:
                self._start_frame()

    @torch.no_grad()
    def _start_frame(self) -> None:
        """Encodes the frame just finished, and starts the cache of the next one."""
        x = self._prior.embedding(self._codes).movedim(-1, 1)[:, :, None]
        if self._frame == 0:
            x = torch.zeros_like(x)
        for index, layer in enumerate(self._layers):
            inputs = self._inputs[index]
            self._inputs[index] = torch.cat([inputs[:, :, 1:], x], dim=2)
            x = layer(x, inputs)
        told = x[:, :, 0]
        if self._context is not None:
            told = torch.cat([told, self._context[:, :, self._frame]], dim=1)
        self._stepper = self._prior.frame.stepper(len(told), self._size, self._labels, told)
