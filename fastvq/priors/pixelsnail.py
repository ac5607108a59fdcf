# SPDX-License-Identifier: Apache-2.0
"""PixelSNAIL: causal convolutions for what is near, attention for what is far.

Source: Chen et al. 2017, "PixelSNAIL: An Improved Autoregressive Generative Model",
https://arxiv.org/abs/1712.09763; as a prior of codes in Razavi et al. 2019, "Generating Diverse
High-Fidelity Images with VQ-VAE-2", https://arxiv.org/abs/1906.00446, section 3.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks
from fastvq.priors._attention import CausalAttention
from fastvq.priors._conditions import Conditions
from fastvq.priors._pixelsnail_stepper import PixelSNAILStepper
from fastvq.priors._positions import position_features
from fastvq.priors._streams import InputStreams, Streams
from fastvq.priors.base import Context, Prior, PriorConfig, start_near_uniform


@dataclass(frozen=True)
class PixelSNAILConfig(PriorConfig):
    """The shape of a :class:`PixelSNAIL`, beside what :class:`PriorConfig` holds.

    Args:
        channels: width C of both streams.
        residual_channels: width inside a residual block.
        blocks: each some gated residual layers, then attention.
        layers: gated residual layers in a block.
        kernel_size: odd width of the square neighbourhood whose causal part a layer sees.
        attention_heads: heads at the end of each block; 0 for none, as in the bottom prior of
            VQ-VAE-2.
        attention_key_channels: of a head's queries and keys.
        attention_value_channels: of a head's values.
        output_layers: residual layers of 1x1 convolutions before the logits.

    Raises:
        TypeError, ValueError: as for :class:`PriorConfig`, or an even kernel.

    Note:
        ``dropout`` drops channels of what a residual layer adds, and attention weights. The top
        prior of VQ-VAE-2 has 5 layers to a block, 4 blocks, 8 heads, kernels of 5, 20 output
        layers and far more channels; the defaults suit a few thousand small grids.
    """

    channels: int = 64
    residual_channels: int = 64
    blocks: int = 2
    layers: int = 2
    kernel_size: int = 3
    attention_heads: int = 4
    attention_key_channels: int = 16
    attention_value_channels: int = 16
    output_layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "residual_channels", "blocks", "layers", "kernel_size"):
            _checks.positive(name, getattr(self, name))
        for name in ("attention_key_channels", "attention_value_channels"):
            _checks.positive(name, getattr(self, name))
        for name in ("attention_heads", "output_layers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.kernel_size % 2 == 0 or self.kernel_size < 3:
            raise ValueError(f"kernel_size must be odd and at least 3, got {self.kernel_size}")


class GatedResidual(nn.Module):
    r"""One gated residual layer of both streams; the vertical one feeds the horizontal one.

    .. math:: x + a \odot \sigma(b), \quad [a, b] = W \,\mathrm{silu}(V * \mathrm{silu}(x) + c)

    with the conditions c, a causal convolution V and a 1x1 convolution W.
    """

    def __init__(self, config: PixelSNAILConfig, num_label_rows: int) -> None:
        super().__init__()
        channels, inner = config.channels, config.residual_channels
        self.reach = config.kernel_size // 2
        self.vertical = nn.Conv2d(channels, inner, (self.reach + 1, config.kernel_size))
        self.vertical_out = nn.Conv2d(inner, 2 * channels, 1)
        self.horizontal = nn.Conv2d(channels, inner, (1, self.reach + 1))
        self.vertical_to_horizontal = nn.Conv2d(channels, inner, 1, bias=False)
        self.horizontal_out = nn.Conv2d(inner, 2 * channels, 1)
        self.conditions = Conditions(num_label_rows, config.context_channels, inner)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, streams: Streams, label_rows: Tensor | None, context: Tensor | None
    ) -> Streams:
        """Both streams one layer on, given rows ``[B]`` of the label table and the context."""
        vertical, horizontal = streams
        above, left = self.conditions(label_rows, context)
        # the vertical stream knows only the rows above its own, so its own row may be read
        window = F.pad(F.silu(vertical), (self.reach, self.reach, self.reach, 0))
        vertical = self.down(vertical, window, above)
        seen = self.horizontal(F.pad(F.silu(horizontal), (self.reach, 0)))
        inner = F.silu(seen + self.vertical_to_horizontal(vertical) + left)
        gained = F.glu(self.horizontal_out(inner), dim=1)
        return Streams(vertical, horizontal + self.dropout(gained))

    def down(self, vertical: Tensor, window: Tensor, above: Tensor | float) -> Tensor:
        """The vertical stream ``[B, C, H, W]`` from its padded window ``[B, C, H + r, W + 2r]``.

        The window holds the stream after its activation.
        """
        inner = F.silu(self.vertical(window) + above)
        return vertical + self.dropout(F.glu(self.vertical_out(inner), dim=1))


class OutputResidual(nn.Module):
    """``x + W silu(V silu(x))``, all 1x1: depth that costs no causality."""

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__()
        self.inner = nn.Conv2d(config.channels, config.residual_channels, 1)
        self.out = nn.Conv2d(config.residual_channels, config.channels, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]`` to the same."""
        return x + self.dropout(self.out(F.silu(self.inner(F.silu(x)))))


class Block(nn.Module):
    """Gated residual layers, then attention of the horizontal stream to the codes before."""

    def __init__(self, config: PixelSNAILConfig, num_label_rows: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            GatedResidual(config, num_label_rows) for _ in range(config.layers)
        )
        self.attention = None
        if config.attention_heads:
            self.attention = CausalAttention(
                config.channels,
                config.attention_heads,
                config.attention_key_channels,
                config.attention_value_channels,
                config.dropout,
            )
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        streams: Streams,
        codes: Tensor,
        positions: Tensor,
        label_rows: Tensor | None,
        context: Tensor | None,
    ) -> Streams:
        """Both streams one block on.

        Args:
            streams: each ``[B, C, H, W]``.
            codes: embedded codes ``[B, C, H, W]``.
            positions: ``[H, W, POSITION_FEATURES]``.
            label_rows: rows ``[B]`` of the label tables.
            context: ``[B, context_channels, H, W]``.
        """
        for layer in self.layers:
            streams = layer(streams, label_rows, context)
        if self.attention is None:
            return streams
        vertical, horizontal = streams
        gained = self.attention(
            F.silu(horizontal).flatten(2).transpose(1, 2),
            codes.flatten(2).transpose(1, 2),
            positions.flatten(0, 1),
        )
        gained = gained.transpose(1, 2).unflatten(2, horizontal.shape[2:])
        return Streams(vertical, horizontal + self.dropout(gained))


class PixelSNAIL(Prior):
    r"""Likelihood of a grid of codes, one code after another in raster order.

    Gated residual layers see a neighbourhood, a multi-head attention after each block sees all
    codes before, however far. Two streams, one of the rows above and one of the row itself, leave
    no blind spot, so that every earlier code within :attr:`reach` counts also without attention.
    Logits at a position depend on no code at or after it, exactly. Any height and width works:
    position enters as fixed sinusoids of row and column.

    Args:
        config: see :class:`PixelSNAILConfig`.

    Example:
        >>> import torch
        >>> prior = PixelSNAIL(PixelSNAILConfig(codebook_size=64, num_classes=10))
        >>> codes, labels = torch.randint(64, (8, 4, 4)), torch.randint(10, (8,))
        >>> prior(codes, labels).shape
        torch.Size([8, 4, 4, 64])
        >>> loss = prior.nll(codes, labels).mean()  # nats per code
    """

    grid_dims = 2
    config: PixelSNAILConfig

    def __init__(self, config: PixelSNAILConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.embedding = nn.Embedding(config.codebook_size, channels)
        self.input = InputStreams(channels, config.kernel_size)
        self.blocks = nn.ModuleList(
            Block(config, self.num_label_rows) for _ in range(config.blocks)
        )
        self.output = nn.Sequential(*(OutputResidual(config) for _ in range(config.output_layers)))
        self.logits = nn.Conv2d(channels, config.codebook_size, 1)
        start_near_uniform(self.logits)

    @property
    def reach(self) -> float:
        """How many rows up and columns to either side a logit can see, at most.

        Infinite with attention.
        """
        if self.config.attention_heads:
            return math.inf
        layers = self.config.blocks * self.config.layers
        return (layers + 1) * (self.config.kernel_size // 2)

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """See :meth:`Prior.forward`; ``shape`` is (H, W)."""
        self.check_codes(codes)
        features = self.features(context, codes.shape[0], codes.shape[1:])
        rows = self.hidden_labels(self.label_rows(labels, codes.shape[0]))
        embedded = self.hidden_codes(self.embedding(codes)).permute(0, 3, 1, 2)  # [B, C, H, W]
        positions = position_features(codes.shape[1], codes.shape[2], embedded)
        streams = self.input(embedded)
        for block in self.blocks:
            streams = block(streams, embedded, positions, rows, features)
        hidden = F.silu(self.output(streams.horizontal))
        return self.logits(hidden).permute(0, 2, 3, 1)  # [B, H, W, K]

    def stepper(
        self,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> PixelSNAILStepper:
        """See :meth:`Prior.stepper`; ``shape`` is (H, W)."""
        height, width = self.checked_shape(shape)
        features = self.features(context, batch, shape)
        rows = self.label_rows(labels, batch)
        return PixelSNAILStepper(self, batch, (height, width), rows, features)
