# SPDX-License-Identifier: Apache-2.0
"""A prior over videos of codes: frame after frame, and code after code within a frame.

Source: Kalchbrenner et al. 2016, "Video Pixel Networks", https://arxiv.org/abs/1610.00527, section
3 (an encoder of the frames before that keeps their resolution, a PixelCNN over the frame), with
convolutions over time in place of the recurrent network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks
from fastvq.priors._video_stepper import VideoPixelCNNStepper
from fastvq.priors.base import Context, Prior, PriorConfig
from fastvq.priors.pixelcnn import GatedPixelCNN, GatedPixelCNNConfig


@dataclass(frozen=True)
class VideoPixelCNNConfig(PriorConfig):
    """The shape of a :class:`VideoPixelCNN`, beside what :class:`PriorConfig` holds.

    Args:
        channels: width of the :class:`GatedPixelCNN` over a frame.
        layers: its gated layers.
        kernel_size: odd width of the neighbourhood that a layer sees, in the frame and in those
            before.
        frame_channels: width F of the encoder of the frames before.
        frame_layers: its gated layers.
        frame_cycle: layers of the encoder after which the dilations 1, 2, ..., 2^(frame_cycle - 1)
            begin again. A dilation spreads both the neighbourhood and the two frames that a layer
            looks at.

    Raises:
        TypeError, ValueError: as for :class:`GatedPixelCNNConfig`.

    Note:
        ``dropout`` drops channels of a gate's output, in both networks.
    """

    channels: int = 64
    layers: int = 4
    kernel_size: int = 3
    frame_channels: int = 64
    frame_layers: int = 4
    frame_cycle: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("frame_channels", "frame_layers", "frame_cycle"):
            _checks.positive(name, getattr(self, name))
        # whatever is wrong with the prior of a frame is said here
        _ = self.frame

    @property
    def dilations(self) -> tuple[int, ...]:
        """The dilation of each layer of the encoder."""
        return tuple(2 ** (layer % self.frame_cycle) for layer in range(self.frame_layers))

    @property
    def frame(self) -> GatedPixelCNNConfig:
        """The prior of a frame, whose context is the encoded past and, after it, the context."""
        return GatedPixelCNNConfig(
            codebook_size=self.codebook_size,
            num_classes=self.num_classes,
            context_channels=self.frame_channels + self.context_channels,
            dropout=self.dropout,
            code_dropout=self.code_dropout,
            label_dropout=self.label_dropout,
            channels=self.channels,
            layers=self.layers,
            kernel_size=self.kernel_size,
        )


class FrameLayer(nn.Module):
    """A gated residual convolution of a frame and of the one a dilation before it."""

    def __init__(self, config: VideoPixelCNNConfig, dilation: int) -> None:
        super().__init__()
        channels, self.dilation = config.frame_channels, dilation
        around = dilation * (config.kernel_size // 2)
        self.gates = nn.Conv3d(
            channels,
            2 * channels,
            (2, config.kernel_size, config.kernel_size),
            dilation=dilation,
            padding=(0, around, around),
        )
        self.out = nn.Conv3d(channels, channels, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, frames: Tensor, before: Tensor) -> Tensor:
        """The stream one layer on.

        Args:
            frames: ``[B, F, T, H, W]``.
            before: the ``dilation`` frames before them, ``[B, F, dilation, H, W]``.
        """
        signal, gate = self.gates(torch.cat([before, frames], dim=2)).chunk(2, dim=1)
        return frames + self.out(self.dropout(torch.tanh(signal) * torch.sigmoid(gate)))


class VideoPixelCNN(Prior):
    r"""Likelihood of a video of codes: a prior of a frame, given the frames before it.

    .. math:: p(z) = \prod_t p(z_t \mid z_{t - R}, \dots, z_{t-1}, \text{label}, \text{context}_t)

    The frames before are encoded by dilated convolutions over time and space, causal in time: what
    a frame is told depends on earlier frames alone, and on the whole of them within
    :attr:`reach`. The result, at the resolution of the codes, is the context of a
    :class:`GatedPixelCNN` over the frame, which sees the earlier codes of the frame itself. The
    first frame is told what the encoder makes of no frames at all.

    A ``context [B, context_channels, T, H, W]`` reaches the frame that it is of. Actions, one a
    frame, are given through it: a vector ``[B, C, T]`` as
    ``actions[..., None, None].expand(-1, -1, -1, H, W)``. So are the actions of the DM Lab model of
    van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, section 4.4, whose given first
    frames are the ``prefix`` of :func:`fastvq.priors.sample`.

    Args:
        config: see :class:`VideoPixelCNNConfig`.

    Example:
        >>> prior = VideoPixelCNN(VideoPixelCNNConfig(codebook_size=64))
        >>> codes = torch.randint(64, (2, 6, 4, 4))
        >>> prior(codes).shape
        torch.Size([2, 6, 4, 4, 64])
        >>> from fastvq.priors import sample
        >>> sample(prior, (8, 4, 4), prefix=codes).shape  # two frames more
        torch.Size([2, 8, 4, 4])
    """

    grid_dims = 3
    config: VideoPixelCNNConfig

    def __init__(self, config: VideoPixelCNNConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.codebook_size, config.frame_channels)
        self.layers = nn.ModuleList(FrameLayer(config, dilation) for dilation in config.dilations)
        self.frame = GatedPixelCNN(config.frame)

    @property
    def reach(self) -> int:
        """How many frames back, and rows and columns to any side, a logit sees every earlier code.

        Every earlier code of a T x H x W grid is seen when ``reach >= max(T, H, W) - 1``.
        """
        spread = sum(self.config.dilations)
        past = min(1 + spread, spread * (self.config.kernel_size // 2))
        return min(past, self.frame.reach)

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """See :meth:`Prior.forward`; ``shape`` is (T, H, W)."""
        self.check_codes(codes)
        batch, frames = codes.shape[:2]
        features = self.features(context, batch, codes.shape[1:])
        self.label_rows(labels, batch)
        told = self._encoded(codes)
        if features is not None:
            told = torch.cat([told, features], dim=1)
        # every frame is a grid of its own, given what it is told
        logits: Tensor = self.frame(
            codes.flatten(0, 1),
            None if labels is None else labels.repeat_interleave(frames),
            told.transpose(1, 2).flatten(0, 1),
        )
        return logits.unflatten(0, (batch, frames))

    def stepper(
        self,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> VideoPixelCNNStepper:
        """See :meth:`Prior.stepper`; ``shape`` is (T, H, W)."""
        frames, height, width = self.checked_shape(shape)
        features = self.features(context, batch, shape)
        self.label_rows(labels, batch)
        return VideoPixelCNNStepper(self, batch, (frames, height, width), labels, features)

    def _encoded(self, codes: Tensor) -> Tensor:
        """What every frame is told of those before it, ``[B, F, T, H, W]``."""
        embedded = self.hidden_codes(self.embedding(codes[:, :-1])).movedim(-1, 1)
        x = F.pad(embedded, (0, 0, 0, 0, 1, 0))
        for layer, dilation in zip(self.layers, self.config.dilations, strict=True):
            x = layer(x, torch.zeros_like(x[:, :, :1]).expand(-1, -1, dilation, -1, -1))
        return x
