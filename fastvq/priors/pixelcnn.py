# SPDX-License-Identifier: Apache-2.0
"""The gated PixelCNN: an autoregressive prior over a grid of codes.

Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders",
https://arxiv.org/abs/1606.05328, section 2 (gates, two streams) and section 3 (conditioning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks
from fastvq.priors._conditions import Conditions
from fastvq.priors._pixelcnn_stepper import GatedPixelCNNStepper
from fastvq.priors._streams import InputStreams, Streams
from fastvq.priors.base import Context, Prior, PriorConfig, start_near_uniform


@dataclass(frozen=True)
class GatedPixelCNNConfig(PriorConfig):
    """The shape of a :class:`GatedPixelCNN`, beside what :class:`PriorConfig` holds.

    Args:
        channels: width C of both streams.
        layers: gated layers after the input layer.
        kernel_size: odd width of the square neighbourhood whose causal part a layer sees.

    Raises:
        TypeError, ValueError: as for :class:`PriorConfig`, or an even kernel.

    Note:
        ``dropout`` drops channels of a gate's output. The defaults suit a few thousand small grids,
        where the prior would otherwise learn them by heart: AdamW at 4e-3 (warm-up, cosine to 0)
        with weight decay 0.2 to 1, batches of 128, 400 to 800 steps, the weights of the best
        validation.
    """

    channels: int = 64
    layers: int = 4
    kernel_size: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "layers", "kernel_size"):
            _checks.positive(name, getattr(self, name))
        if self.kernel_size % 2 == 0 or self.kernel_size < 3:
            raise ValueError(f"kernel_size must be odd and at least 3, got {self.kernel_size}")


def _gate(x: Tensor) -> Tensor:
    """``tanh(a) * sigmoid(b)`` for ``x = [a, b]`` split in channels: equation 2."""
    signal, gate = x.chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(gate)


class GatedLayer(nn.Module):
    """One gated layer; the vertical stream feeds the horizontal one, never the reverse."""

    def __init__(self, config: GatedPixelCNNConfig, num_label_rows: int) -> None:
        super().__init__()
        channels, self.reach = config.channels, config.kernel_size // 2
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.reach + 1, config.kernel_size))
        self.vertical_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.reach + 1))
        self.vertical_to_horizontal = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.horizontal_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.conditions = Conditions(num_label_rows, config.context_channels, 2 * channels)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, streams: Streams, label_rows: Tensor | None, context: Tensor | None
    ) -> Streams:
        """Both streams one layer on, given rows ``[B]`` of the label table and the context."""
        vertical, horizontal = streams
        above, left = self.conditions(label_rows, context)
        # the vertical stream knows only the rows above its own, so its own row may be read
        window = F.pad(vertical, (self.reach, self.reach, self.reach, 0))
        vertical = self.down(vertical, window, above)
        seen = self.horizontal(F.pad(horizontal, (self.reach, 0)))
        gates = seen + self.vertical_to_horizontal(vertical) + left
        return Streams(vertical, horizontal + self.horizontal_out(self.dropout(_gate(gates))))

    def down(self, vertical: Tensor, window: Tensor, above: Tensor | float) -> Tensor:
        """The vertical stream ``[B, C, H, W]`` from its padded window ``[B, C, H + r, W + 2r]``."""
        gates = self.vertical(window) + above
        return vertical + self.vertical_out(self.dropout(_gate(gates)))


class GatedPixelCNN(Prior):
    r"""Likelihood of a grid of codes, one code after another in raster order.

    .. math:: p(z) = \prod_t p(z_t \mid z_1, \dots, z_{t-1}, \text{label}, \text{context})

    A vertical stream sees the rows above, a horizontal one the codes to the left and, through the
    vertical one, everything above: no blind spot. The masks are crops and shifts, so no weight is
    ever written in ``forward``. Logits at a position depend on no code at or after it, exactly,
    and on every earlier code within :attr:`reach`. Any height and width works: position enters
    through fixed sinusoids of row and column, not through a table of one size.

    Args:
        config: see :class:`GatedPixelCNNConfig`.

    Example:
        >>> prior = GatedPixelCNN(GatedPixelCNNConfig(codebook_size=64, num_classes=10))
        >>> codes, labels = torch.randint(64, (8, 4, 4)), torch.randint(10, (8,))
        >>> prior(codes, labels).shape
        torch.Size([8, 4, 4, 64])
        >>> loss = prior.nll(codes, labels).mean()  # nats per code
    """

    grid_dims = 2
    config: GatedPixelCNNConfig

    def __init__(self, config: GatedPixelCNNConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.embedding = nn.Embedding(config.codebook_size, channels)
        self.input = InputStreams(channels, config.kernel_size)
        self.layers = nn.ModuleList(
            GatedLayer(config, self.num_label_rows) for _ in range(config.layers)
        )
        self.hidden = nn.Conv2d(channels, 2 * channels, 1)
        self.logits = nn.Conv2d(2 * channels, config.codebook_size, 1)
        self.dropout = nn.Dropout(config.dropout)
        start_near_uniform(self.logits)

    @property
    def reach(self) -> int:
        """How many rows up and columns to either side a logit can see, at most.

        Every earlier code of an H x W grid is seen when ``reach >= max(H, W) - 1``.
        """
        return (self.config.layers + 1) * (self.config.kernel_size // 2)

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """See :meth:`Prior.forward`; ``shape`` is (H, W)."""
        self.check_codes(codes)
        features = self.features(context, codes.shape[0], codes.shape[1:])
        rows = self.hidden_labels(self.label_rows(labels, codes.shape[0]))
        embedded = self.hidden_codes(self.embedding(codes)).permute(0, 3, 1, 2)  # [B, C, H, W]
        streams = self.input(embedded)
        for layer in self.layers:
            streams = layer(streams, rows, features)
        hidden = self.hidden(F.silu(streams.horizontal))
        return self.logits(self.dropout(F.silu(hidden))).permute(0, 2, 3, 1)  # [B, H, W, K]

    def stepper(
        self,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> GatedPixelCNNStepper:
        """See :meth:`Prior.stepper`; ``shape`` is (H, W)."""
        height, width = self.checked_shape(shape)
        features = self.features(context, batch, shape)
        rows = self.label_rows(labels, batch)
        return GatedPixelCNNStepper(self, batch, (height, width), rows, features)
