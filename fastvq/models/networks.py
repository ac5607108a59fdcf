# SPDX-License-Identifier: Apache-2.0
"""Encoders and decoders: strided convolutions around residual blocks and attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fastvq import _checks
from fastvq.models import blocks
from fastvq.models.attention import SelfAttention

Strides = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The data's axes, and the widths and depths of encoders and decoders.

    Attributes:
        in_channels: channels of the data: 1 for grey images or mono audio, 3 for RGB.
        spatial_dims: 1 for signals, 2 for images, 3 for video.
        hidden_channels: width of encoders and decoders.
        residual_channels: width inside the residual blocks.
        residual_blocks: residual blocks in each encoder, and again in each decoder.
        kernel_size: of the convolutions that keep the size, odd.
        attention_heads: heads of one layer of self-attention after the residual blocks of each
            encoder and decoder, at the coded resolution; 0 for none.
    """

    in_channels: int = 1
    spatial_dims: int = 2
    hidden_channels: int = 64
    residual_channels: int = 32
    residual_blocks: int = 2
    kernel_size: int = 3
    attention_heads: int = 0

    def __post_init__(self) -> None:
        for name in ("in_channels", "hidden_channels", "residual_channels", "kernel_size"):
            _checks.positive(name, getattr(self, name))
        if self.spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims must be 1, 2 or 3, got {self.spatial_dims}")
        for name in ("residual_blocks", "attention_heads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")
        part = 2 * self.spatial_dims * self.attention_heads
        if part and self.hidden_channels % part:
            raise ValueError(
                f"hidden_channels must be a multiple of {part}, two for each axis of each "
                f"attention head, got {self.hidden_channels}"
            )


class Encoder(nn.Module):
    """Data ``[B, inputs, L, ...]`` to features ``[B, hidden_channels, L / stride, ...]``.

    With ``outputs``, one more 1-wide convolution makes them vectors ``[B, outputs, ...]``.
    """

    def __init__(
        self, config: NetworkConfig, inputs: int, strides: Strides, outputs: int | None = None
    ) -> None:
        super().__init__()
        dims, hidden, kernel = config.spatial_dims, config.hidden_channels, config.kernel_size
        layers: list[nn.Module] = []
        for stride in strides:
            layers += [blocks.down(dims, inputs, hidden, stride), nn.ReLU()]
            inputs = hidden
        layers += [blocks.convolution(dims, hidden, hidden, kernel), *trunk(config)]
        if outputs is not None:
            layers.append(blocks.convolution(dims, hidden, outputs, 1))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the features, or the vectors that will be quantized."""
        features: Tensor = self.layers(x)
        return features


class Decoder(nn.Module):
    """Vectors ``[B, inputs, L, ...]`` to ``[B, outputs, L * stride, ...]``."""

    def __init__(self, config: NetworkConfig, inputs: int, strides: Strides, outputs: int) -> None:
        super().__init__()
        dims, hidden, kernel = config.spatial_dims, config.hidden_channels, config.kernel_size
        layers: list[nn.Module] = []
        for stride in reversed(strides):
            layers += [blocks.up(dims, hidden, hidden, stride), nn.ReLU()]
        self.layers = nn.Sequential(
            blocks.convolution(dims, inputs, hidden, kernel),
            *trunk(config),
            *layers,
            blocks.convolution(dims, hidden, outputs, kernel),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Returns what the vectors stand for."""
        data: Tensor = self.layers(vectors)
        return data


def trunk(config: NetworkConfig) -> list[nn.Module]:
    """What an encoder or decoder does at the coded resolution."""
    dims, hidden = config.spatial_dims, config.hidden_channels
    stack = blocks.residual_stack(
        dims, hidden, config.residual_channels, config.residual_blocks, config.kernel_size
    )
    if config.attention_heads == 0:
        return [stack]
    return [stack, SelfAttention(dims, hidden, config.attention_heads)]


def axis_strides(
    spatial_dims: int, strides: Sequence[int], time_strides: Sequence[int] | None
) -> list[tuple[int, ...]]:
    """The stride of every axis at every stage.

    Raises:
        ValueError: a stride below 2 (below 1 in time), or time strides that fit no video.
    """
    if not strides or min(strides) < 2:
        raise ValueError(f"strides must be one or more ints >= 2, got {list(strides)}")
    if time_strides is None:
        return [(stride,) * spatial_dims for stride in strides]
    if spatial_dims != 3:
        raise ValueError(
            f"time_strides must be None unless spatial_dims is 3, got {list(time_strides)}"
        )
    if len(time_strides) != len(strides) or min(time_strides) < 1:
        raise ValueError(
            f"time_strides must be {len(strides)} ints >= 1, one for each of strides, "
            f"got {list(time_strides)}"
        )
    return [(t, s, s) for t, s in zip(time_strides, strides, strict=True)]


def total_stride(strides: Strides) -> tuple[int, ...]:
    """Samples per code in every axis: the products of the stages."""
    return tuple(math.prod(axis) for axis in zip(*strides, strict=True))
