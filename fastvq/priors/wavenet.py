# SPDX-License-Identifier: Apache-2.0
"""WaveNet: an autoregressive prior over a sequence, of codes or of the samples of a sound.

Source: van den Oord et al. 2016, "WaveNet: A Generative Model for Raw Audio",
https://arxiv.org/abs/1609.03499, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks
from fastvq.priors._wavenet_stepper import WaveNetStepper
from fastvq.priors.base import Context, Prior, PriorConfig, start_near_uniform


@dataclass(frozen=True)
class WaveNetConfig(PriorConfig):
    """The shape of a :class:`WaveNet`, beside what :class:`PriorConfig` holds.

    Args:
        channels: width C of the stream from layer to layer.
        gate_channels: width G of a layer's gated output.
        skip_channels: width S of what all layers add up to, which decides the logits.
        layers: gated layers.
        cycle: layers after which the dilations 1, 2, 4, ..., 2^(cycle - 1) begin again.
        kernel_size: positions that a layer looks at, a dilation apart, the current one included.

    Raises:
        TypeError, ValueError: as for :class:`PriorConfig`, or ``kernel_size`` below 2.

    Note:
        ``dropout`` drops units of a gate's output and of the last hidden layer. The defaults suit a
        few thousand sequences of some tens of codes. The decoder of a speech VQ-VAE is larger and
        has sound enough not to need dropout: three cycles of ten layers, and 0 for ``dropout`` and
        ``code_dropout``.
    """

    channels: int = 64
    gate_channels: int = 64
    skip_channels: int = 128
    layers: int = 10
    cycle: int = 5
    kernel_size: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("channels", "gate_channels", "skip_channels", "layers", "cycle", "kernel_size")
        for name in counts:
            _checks.positive(name, getattr(self, name))
        if self.kernel_size < 2:
            raise ValueError(f"kernel_size must be at least 2, got {self.kernel_size}")

    @property
    def dilations(self) -> tuple[int, ...]:
        """How far apart the positions lie that each layer looks at."""
        return tuple(2 ** (layer % self.cycle) for layer in range(self.layers))


class WaveNetLayer(nn.Module):
    r"""One gated layer: ``tanh(a) sigmoid(b)``, into the stream and into the skip connections.

    ``a`` and ``b`` are a causal dilated convolution of the stream, plus a row of the label table,
    plus a projection of the context: equations 2 and 3.
    """

    def __init__(
        self, config: WaveNetConfig, num_label_rows: int, dilation: int, *, last: bool
    ) -> None:
        super().__init__()
        channels, gated = config.channels, config.gate_channels
        self.padding = dilation * (config.kernel_size - 1)
        self.dilated = nn.Conv1d(channels, 2 * gated, config.kernel_size, dilation=dilation)
        # after the last layer nobody reads the stream
        self.residual = None if last else nn.Conv1d(gated, channels, 1, bias=False)
        self.skip = nn.Conv1d(gated, config.skip_channels, 1)
        self.condition = nn.Embedding(num_label_rows, 2 * gated) if num_label_rows else None
        if self.condition is not None:
            nn.init.normal_(self.condition.weight, std=0.1)
        self.context = None
        if config.context_channels:
            self.context = nn.Conv1d(config.context_channels, 2 * gated, 1, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, label_rows: Tensor | None, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The stream ``[B, C, L]`` one layer on, and what is skipped to the output ``[B, S, L]``.

        Args:
            x: ``[B, C, L]``.
            label_rows: rows ``[B]`` of the label table.
            context: ``[B, context_channels, l]``, l dividing L.
        """
        gates = self.dilated(F.pad(x, (self.padding, 0)))
        if self.condition is not None:
            gates = gates + self.condition(label_rows)[:, :, None]
        if self.context is not None:
            told = self.context(context)  # [B, 2G, l]
            gates = gates + told.repeat_interleave(x.shape[2] // told.shape[2], dim=2)
        signal, gate = gates.chunk(2, dim=1)
        gated = self.dropout(torch.tanh(signal) * torch.sigmoid(gate))
        if self.residual is not None:
            x = x + self.residual(gated)
        return x, self.skip(gated)


class WaveNet(Prior):
    r"""Likelihood of a sequence of codes, one code after another.

    .. math:: p(z) = \prod_t p(z_t \mid z_{t - R}, \dots, z_{t-1}, \text{label}, \text{context}_t)

    A stack of causal convolutions whose dilation doubles from layer to layer, so that the reach R
    (:attr:`reach`) grows exponentially with the layers. The input of position t is the code before
    it: its logits depend on no code at or after t, exactly, and on each of the R codes before. A
    label (the class, the speaker) acts on every gate, the context (what is to be said) on the gates
    of its own position and, through them, on later ones. A context ``[B, context_channels, l]``
    may be coarser than the L codes, of any l that divides L: each of its columns is that of L / l
    codes in a row. Position is not told: away from the start of the sequence, the same codes give
    the same logits.

    It serves as a prior over the codes of signals, and as the decoder of a speech VQ-VAE, where
    the "codes" are K = 256 mu-law levels and the context comes from the codes: van den Oord et al.
    2017, https://arxiv.org/abs/1711.00937, section 4.3.

    Args:
        config: see :class:`WaveNetConfig`.

    Example:
        >>> decoder = WaveNet(WaveNetConfig(codebook_size=256, context_channels=16))
        >>> levels, context = torch.randint(256, (2, 512)), torch.randn(2, 16, 8)  # 64 a column
        >>> decoder(levels, context=context).shape
        torch.Size([2, 512, 256])
        >>> loss = decoder.nll(levels, context=context).mean()  # nats per sample
    """

    grid_dims = 1
    config: WaveNetConfig

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__(config)
        self.embedding = nn.Embedding(config.codebook_size, config.channels)
        self.layers = nn.ModuleList(
            WaveNetLayer(config, self.num_label_rows, dilation, last=index == config.layers - 1)
            for index, dilation in enumerate(config.dilations)
        )
        self.hidden = nn.Conv1d(config.skip_channels, config.skip_channels, 1)
        self.logits = nn.Conv1d(config.skip_channels, config.codebook_size, 1)
        self.dropout = nn.Dropout(config.dropout)
        start_near_uniform(self.logits)

    @property
    def reach(self) -> int:
        """R, how many codes back a logit can see, at most.

        Every earlier code of a sequence of length L is seen when ``reach >= L - 1``.
        """
        return 1 + (self.config.kernel_size - 1) * sum(self.config.dilations)

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """See :meth:`Prior.forward`; ``shape`` is (L,)."""
        self.check_codes(codes)
        features = self.features(context, codes.shape[0], codes.shape[1:])
        rows = self.hidden_labels(self.label_rows(labels, codes.shape[0]))
        before = self.hidden_codes(self.embedding(codes[:, :-1]))
        x = F.pad(before.transpose(1, 2), (1, 0))  # [B, C, L]
        skipped = x.new_zeros(())
        for layer in self.layers:
            x, skip = layer(x, rows, features)
            skipped = skipped + skip
        # the paper has ReLU, of which some units never learn
        hidden = self.hidden(F.silu(skipped))
        return self.logits(self.dropout(F.silu(hidden))).transpose(1, 2)  # [B, L, K]

    def features(self, context: Context | None, batch: int, shape: Sequence[int]) -> Tensor | None:
        """See :meth:`Prior.features`; the context may be coarser than the codes."""
        if isinstance(context, Tensor) and context.ndim == 3:
            (length,), columns = shape, context.shape[2]
            if columns and length % columns == 0:
                shape = (columns,)
        return super().features(context, batch, shape)

    def stepper(
        self,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> WaveNetStepper:
        """See :meth:`Prior.stepper`; ``shape`` is (L,)."""
        (length,) = self.checked_shape(shape)
        features = self.features(context, batch, shape)
        return WaveNetStepper(self, batch, length, self.label_rows(labels, batch), features)
