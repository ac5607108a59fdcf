# SPDX-License-Identifier: Apache-2.0
"""The gated PixelCNN: an autoregressive prior over a grid of codes.

Source: van den Oord et al. 2016, "Conditional Image Generation with PixelCNN Decoders",
https://arxiv.org/abs/1606.05328, section 2 (gates, two streams) and section 3 (conditioning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks
from fastvq.priors._pixelcnn_stepper import GatedPixelCNNStepper
from fastvq.priors._positions import POSITION_FEATURES, position_features
from fastvq.priors.base import Prior


@dataclass(frozen=True)
class GatedPixelCNNConfig:
    """The shape and the regularisation of a :class:`GatedPixelCNN`.

    Args:
        codebook_size: K, the number of codes.
        num_classes: classes to condition on; ``None`` for an unconditional prior.
        channels: width C of both streams.
        layers: gated layers after the input layer.
        kernel_size: odd width of the square neighbourhood whose causal part a layer sees.
        dropout: probability of dropping a channel of a gate's output in training.
        code_dropout: probability of hiding an input code in training (what is predicted stays).
        label_dropout: probability of hiding an image's label in training. Above zero, the prior
            also answers for ``labels=None``.

    Raises:
        TypeError, ValueError: a count below one, an even kernel, a probability outside [0, 1).

    Note:
        The defaults suit a few thousand small grids, where the prior would otherwise learn them by
        heart: AdamW at 4e-3 (warm-up, cosine to 0) with weight decay 0.2 to 1, batches of 128, 400
        to 800 steps, the weights of the best validation.
    """

    codebook_size: int
    num_classes: int | None = None
    channels: int = 64
    layers: int = 4
    kernel_size: int = 3
    dropout: float = 0.3
    code_dropout: float = 0.1
    label_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("codebook_size", "channels", "layers", "kernel_size"):
            _checks.positive(name, getattr(self, name))
        if self.num_classes is not None:
            _checks.positive("num_classes", self.num_classes)
        if self.kernel_size % 2 == 0 or self.kernel_size < 3:
            raise ValueError(f"kernel_size must be odd and at least 3, got {self.kernel_size}")
        for name in ("dropout", "code_dropout", "label_dropout"):
            _checks.fraction(name, getattr(self, name))


class _Streams(NamedTuple):
    """What is known above a position and what is known to its left, both ``[B, C, H, W]``."""

    vertical: Tensor
    horizontal: Tensor


def _gate(x: Tensor) -> Tensor:
    """``tanh(a) * sigmoid(b)`` for ``x = [a, b]`` split in channels: equation 2."""
    signal, gate = x.chunk(2, dim=1)
    return torch.tanh(signal) * torch.sigmoid(gate)


class GatedLayer(nn.Module):
    """One gated layer; the vertical stream feeds the horizontal one, never the reverse."""

    def __init__(self, config: GatedPixelCNNConfig, num_rows: int) -> None:
        super().__init__()
        channels, self.reach = config.channels, config.kernel_size // 2
        self.vertical = nn.Conv2d(channels, 2 * channels, (self.reach + 1, config.kernel_size))
        self.vertical_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.horizontal = nn.Conv2d(channels, 2 * channels, (1, self.reach + 1))
        self.vertical_to_horizontal = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.horizontal_out = nn.Conv2d(channels, channels, 1, bias=False)
        self.condition = nn.Embedding(num_rows, 4 * channels) if num_rows else None
        self.dropout = nn.Dropout(config.dropout)
        if self.condition is not None:
            nn.init.normal_(self.condition.weight, std=0.1)

    def forward(self, streams: _Streams, label_rows: Tensor | None) -> _Streams:
        """Both streams one layer on; ``label_rows [B]`` choose rows of the condition table."""
        vertical, horizontal = streams
        above, left = self.conditions(label_rows)
        # the vertical stream knows only the rows above its own, so its own row may be read
        window = F.pad(vertical, (self.reach, self.reach, self.reach, 0))
        vertical = self.down(vertical, window, above)
        seen = self.horizontal(F.pad(horizontal, (self.reach, 0)))
        gates = seen + self.vertical_to_horizontal(vertical) + left
        return _Streams(vertical, horizontal + self.horizontal_out(self.dropout(_gate(gates))))

    def down(self, vertical: Tensor, window: Tensor, above: Tensor | float) -> Tensor:
        """The vertical stream ``[B, C, H, W]`` from its padded window ``[B, C, H + r, W + 2r]``."""
        gates = self.vertical(window) + above
        return vertical + self.vertical_out(self.dropout(_gate(gates)))

    def conditions(self, label_rows: Tensor | None) -> Sequence[Tensor | float]:
        """What the labels add before the two gates, each ``[B, 2C, 1, 1]``."""
        if self.condition is None:
            return 0.0, 0.0
        return self.condition(label_rows)[:, :, None, None].chunk(2, dim=1)


class GatedPixelCNN(Prior):
    r"""Likelihood of a grid of codes, one code after another in raster order.

    .. math:: p(z) = \prod_t p(z_t \mid z_1, \dots, z_{t-1}, \text{label})

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

    def __init__(self, config: GatedPixelCNNConfig) -> None:
        super().__init__()
        self.config = config
        channels, reach = config.channels, config.kernel_size // 2
        classes = config.num_classes or 0
        # the last row answers for "no label"; without label dropout nothing would train it
        self._num_rows = classes + (1 if classes and config.label_dropout else 0)
        self.embedding = nn.Embedding(config.codebook_size, channels)
        self.above = nn.Conv2d(channels, channels, (reach, config.kernel_size))
        self.left = nn.Conv2d(channels, channels, (1, reach))
        self.position = nn.Linear(POSITION_FEATURES, 2 * channels)
        self.layers = nn.ModuleList(
            GatedLayer(config, self._num_rows) for _ in range(config.layers)
        )
        self.hidden = nn.Conv2d(channels, 2 * channels, 1)
        self.logits = nn.Conv2d(2 * channels, config.codebook_size, 1)
        self.dropout = nn.Dropout(config.dropout)
        # start near log K, the loss of knowing nothing
        with torch.no_grad():
            for parameter in self.logits.parameters():
                parameter.mul_(0.1)

    @property
    def reach(self) -> int:
        """How many rows up and columns to either side a logit can see, at most.

        Every earlier code of an H x W grid is seen when ``reach >= max(H, W) - 1``.
        """
        return (self.config.layers + 1) * (self.config.kernel_size // 2)

    def forward(self, codes: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits of every code given the codes before it.

        Args:
            codes: int64 ``[B, H, W]`` in ``[0, K)``.
            labels: int64 ``[B]`` in ``[0, num_classes)``; ``None`` for an unconditional prior, or
                for a conditional one trained with label dropout.

        Returns:
            Logits ``[B, H, W, K]`` in the dtype of the parameters.

        Raises:
            TypeError, ValueError: a wrong rank, dtype, size, device or range; a missing label.
        """
        self._check_codes(codes)
        rows = self.label_rows(labels, codes.shape[0])
        if self.training and rows is not None and self.config.label_dropout:
            hidden = torch.rand(rows.shape, device=rows.device) < self.config.label_dropout
            rows = torch.where(hidden, self._num_rows - 1, rows)
        streams = self._input(codes)
        for layer in self.layers:
            streams = layer(streams, rows)
        hidden = self.hidden(F.silu(streams.horizontal))
        return self.logits(self.dropout(F.silu(hidden))).permute(0, 2, 3, 1)  # [B, H, W, K]

    def stepper(
        self, batch: int, shape: Sequence[int], labels: Tensor | None = None
    ) -> GatedPixelCNNStepper:
        """See :meth:`Prior.stepper`; ``shape`` is (H, W), ``labels`` as in :meth:`forward`."""
        if len(shape) != 2:
            raise ValueError(f"shape must be (H, W), got {tuple(shape)}")
        return GatedPixelCNNStepper(
            self, batch, (shape[0], shape[1]), self.label_rows(labels, batch)
        )

    def label_rows(self, labels: Tensor | None, batch: int) -> Tensor | None:
        """Checked rows ``[B]`` of the condition tables; ``None`` for an unconditional prior."""
        classes = self.config.num_classes
        if classes is None:
            if labels is not None:
                raise ValueError("labels must be None for a prior without classes, got a tensor")
            return None
        if labels is None:
            if self._num_rows == classes:
                raise ValueError(
                    "labels must be given: the prior has classes and label_dropout = 0, "
                    "so it never learned to do without"
                )
            return torch.full((batch,), classes, device=self.embedding.weight.device)
        if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
            raise TypeError(f"labels must be an int64 tensor, got {_kind(labels)}")
        if labels.shape != (batch,):
            raise ValueError(f"labels must be [B] with B = {batch}, got {list(labels.shape)}")
        _checks.same_device("labels", labels, "the prior", self.embedding.weight)
        _check_range("labels", labels, "num_classes", classes)
        return labels

    def _input(self, codes: Tensor) -> _Streams:
        """The input layer: strictly above and strictly left, plus the position."""
        reach = self.config.kernel_size // 2
        x = self.embedding(codes).permute(0, 3, 1, 2)  # [B, C, H, W]
        if self.training and self.config.code_dropout:
            shown = torch.rand(codes.shape, device=codes.device) >= self.config.code_dropout
            x = x * shown[:, None]
        above = self.above(F.pad(x[:, :, :-1], (reach, reach, reach, 0)))
        left = self.left(F.pad(x[..., :-1], (reach, 0)))
        down, right = self.positions(codes.shape[1], codes.shape[2])
        return _Streams(above + down, left + right)

    def positions(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """What the position adds to the vertical and the horizontal input, each ``[C, H, W]``."""
        features = position_features(height, width, self.position.weight)
        down, right = self.position(features).permute(2, 0, 1).chunk(2)
        return down, right

    def _check_codes(self, codes: Tensor) -> None:
        if not isinstance(codes, Tensor) or codes.dtype != torch.int64:
            raise TypeError(f"codes must be an int64 tensor, got {_kind(codes)}")
        if codes.ndim != 3 or 0 in codes.shape[1:]:
            raise ValueError(f"codes must be [B, H, W] with H, W >= 1, got {list(codes.shape)}")
        _checks.same_device("codes", codes, "the prior", self.embedding.weight)
        _check_range("codes", codes, "K", self.config.codebook_size)


def _kind(value: object) -> str:
    return _checks.dtype_name(value) if isinstance(value, Tensor) else type(value).__name__


def _check_range(name: str, values: Tensor, bound_name: str, bound: int) -> None:
    # a look at the values would hold up an accelerator and break a compiled graph
    if values.device.type != "cpu" or torch.compiler.is_compiling() or values.numel() == 0:
        return
    low, high = (int(end) for end in values.aminmax())
    if low < 0 or high >= bound:
        worst = low if low < 0 else high
        raise ValueError(f"{name} must be in [0, {bound_name} = {bound}), got {worst}")
