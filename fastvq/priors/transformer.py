# SPDX-License-Identifier: Apache-2.0
"""A decoder-only Transformer as a prior over grids of codes of any number of axes.

Source: Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762; norms
before each branch as in Xiong et al. 2020, https://arxiv.org/abs/2002.04745; gated hidden units as
in Shazeer 2020, "GLU Variants Improve Transformer", https://arxiv.org/abs/2002.05202.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks
from fastvq.priors._transformer_stepper import TransformerStepper
from fastvq.priors.base import Context, Prior, PriorConfig, start_near_uniform

# shared out among the axes: 48 waves for a sequence, 24 an axis for an image, 16 for a video
_WAVES = 48
_SHORTEST, _LONGEST = 4, 8192


@dataclass(frozen=True)
class TransformerConfig(PriorConfig):
    """The shape of a :class:`Transformer`, beside what :class:`PriorConfig` holds.

    Args:
        channels: width C of the stream from layer to layer, a multiple of ``heads``.
        layers: blocks of attention and gated hidden units.
        heads: attention heads, each of ``channels / heads`` channels.
        mlp_channels: gated hidden units of a block.

    Raises:
        TypeError, ValueError: as for :class:`PriorConfig`, or ``channels`` not a multiple of
            ``heads``.

    Note:
        ``dropout`` drops units of what each branch adds to the stream; attention weights are never
        dropped, which would need all of them in memory at once. The defaults suit a few thousand
        small grids: AdamW at 2e-3 (warm-up, cosine to 0) with weight decay 0.2, batches of 128, 400
        steps, the weights of the best validation.
    """

    channels: int = 128
    layers: int = 4
    heads: int = 4
    mlp_channels: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("channels", "layers", "heads", "mlp_channels"):
            _checks.positive(name, getattr(self, name))
        if self.channels % self.heads:
            raise ValueError(
                f"channels must be a multiple of heads = {self.heads}, got {self.channels}"
            )


class TransformerBlock(nn.Module):
    """Causal self-attention, then gated hidden units, each added to the stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        channels, self.heads = config.channels, config.heads
        self.attention_norm = nn.LayerNorm(channels, bias=False)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.attention_out = nn.Linear(channels, channels, bias=False)
        self.mlp_norm = nn.LayerNorm(channels, bias=False)
        self.mlp_in = nn.Linear(channels, 2 * config.mlp_channels, bias=False)
        self.mlp_out = nn.Linear(config.mlp_channels, channels, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        # the stream is a sum over all branches: its size should not grow with their number
        with torch.no_grad():
            for branch in (self.attention_out, self.mlp_out):
                branch.weight.mul_((2 * config.layers) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """The stream ``[B, T, C]`` one block on."""
        x = x + self.dropout(self.attention_out(self._attended(self.attention_norm(x))))
        gate, hidden = self.mlp_in(self.mlp_norm(x)).chunk(2, dim=-1)
        return x + self.dropout(self.mlp_out(F.silu(gate) * hidden))

    def _attended(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, T, 3, heads, C / heads]
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return attended.transpose(1, 2).flatten(2)


class Transformer(Prior):
    r"""Likelihood of a grid of codes of any number of axes, one code after another in raster order.

    .. math:: p(z) = \prod_t p(z_t \mid z_1, \dots, z_{t-1}, \text{label}, \text{context}_{\le t})

    The token at position t is the code before it, and sees itself and the tokens before: logits
    depend on no code at or after their position, exactly, and on every earlier one, however far.
    The first token stands for the class. Each token is told where its code lies, where the code
    that it predicts will lie (by fixed sinusoids of every axis, so that any shape works), and the
    context there. Memory is linear in the number of positions, not quadratic.

    Args:
        config: see :class:`TransformerConfig`.

    Example:
        >>> prior = Transformer(TransformerConfig(codebook_size=64, num_classes=10))
        >>> codes, labels = torch.randint(64, (8, 4, 4)), torch.randint(10, (8,))
        >>> prior(codes, labels).shape
        torch.Size([8, 4, 4, 64])
        >>> loss = prior.nll(codes, labels).mean()  # nats per code
    """

    grid_dims = None
    config: TransformerConfig

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        channels = config.channels
        self.embedding = nn.Embedding(config.codebook_size, channels)
        self.start = nn.Embedding(max(1, self.num_label_rows), channels)
        # of the code a token stands for and of the one it predicts
        self.position = nn.Linear(4 * _WAVES, channels, bias=False)
        self.context = None
        if config.context_channels:
            self.context = nn.Linear(config.context_channels, channels, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(TransformerBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(channels, bias=False)
        self.logits = nn.Linear(channels, config.codebook_size)
        start_near_uniform(self.logits)

    @property
    def reach(self) -> float:
        """Every earlier code is seen, however far: infinity."""
        return math.inf

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """See :meth:`Prior.forward`; any ``shape``."""
        self.check_codes(codes)
        batch, shape = codes.shape[0], codes.shape[1:]
        features = self.features(context, batch, shape)
        rows = self.hidden_labels(self.label_rows(labels, batch))
        before = self.hidden_codes(self.embedding(codes.flatten(1)[:, :-1]))
        tokens = torch.cat([self.first(rows, batch)[:, None], before], dim=1)  # [B, T, C]
        x = self.dropout(tokens + self.told(shape, features))
        for layer in self.layers:
            x = layer(x)
        return self.logits(self.norm(x)).unflatten(1, shape)

    def stepper(
        self,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> TransformerStepper:
        """See :meth:`Prior.stepper`; any ``shape``."""
        shape = self.checked_shape(shape)
        features = self.features(context, batch, shape)
        return TransformerStepper(self, batch, shape, self.label_rows(labels, batch), features)

    def first(self, rows: Tensor | None, batch: int) -> Tensor:
        """The first token ``[B, C]``, given rows ``[B]`` of the label table."""
        return self.start.weight.expand(batch, -1) if rows is None else self.start(rows)

    def told(self, shape: Sequence[int], context: Tensor | None) -> Tensor:
        """What position and context add to the tokens, ``[B or 1, T, C]``."""
        waves = _grid_waves(shape, self.position.weight)
        # the first token stands for no code, and no place has features of zero
        own = F.pad(waves[:-1], (0, 0, 1, 0))
        told = self.position(torch.cat([own, waves], dim=-1))[None]
        if self.context is not None and context is not None:
            told = told + self.context(context.flatten(2).transpose(1, 2))
        return told


def _grid_waves(shape: Sequence[int], like: Tensor) -> Tensor:
    """Sines and cosines of the coordinates of every position, ``[T, 2 _WAVES]``.

    Args:
        shape: sizes of the axes; each axis gets an equal share of the waves, what is left is zero.
        like: a tensor whose dtype and device the result takes.

    Raises:
        ValueError: more axes than waves.

    Source: Vaswani et al. 2017, section 3.5.
    """
    count = _WAVES // len(shape)
    if count == 0:
        raise ValueError(f"shape must have at most {_WAVES} axes, got {len(shape)}")
    octaves = torch.linspace(0, math.log2(_LONGEST / _SHORTEST), count, dtype=torch.float64)
    frequencies = (2 * math.pi / _SHORTEST * 2**-octaves).to(like.device)
    features = []
    for axis, size in enumerate(shape):
        phases = torch.arange(size, device=like.device)[:, None] * frequencies
        waves = torch.cat([phases.sin(), phases.cos()], dim=-1).to(like.dtype)
        waves = waves.view(size, *[1] * (len(shape) - axis - 1), 2 * count)
        features.append(waves.expand(*shape, -1).flatten(0, -2))
    joined = torch.cat(features, dim=-1)
    return F.pad(joined, (0, 2 * _WAVES - joined.shape[-1]))
