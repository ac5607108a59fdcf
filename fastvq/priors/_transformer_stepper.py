# SPDX-License-Identifier: Apache-2.0
"""The cache of a :class:`Transformer`: keys and values of every position so far."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from fastvq.priors.transformer import Transformer, TransformerBlock


class TransformerStepper:
    """Logits of one position after another, each from one token and the keys and values before it.

    The work of a step grows with its position only by the attention itself. Nothing is
    approximated: the logits equal those of the full forward up to the rounding of another order of
    summation. Keys and values of all positions are allocated at once, ``2 T C`` numbers for each
    block and grid. Copies of the weights are made at construction: weights changed later are not
    seen.

    Args:
        prior: in eval mode.
        batch: B, grids drawn together.
        shape: sizes of a grid in codes.
        label_rows: from :meth:`Transformer.label_rows`.
        context: ``[B, context_channels, *shape]``, or ``None`` for a prior without.

    Raises:
        RuntimeError: the prior is in training mode, where dropout would make every answer another.
    """

    @torch.no_grad()
    def __init__(
        self,
        prior: Transformer,
        batch: int,
        shape: tuple[int, ...],
        label_rows: Tensor | None,
        context: Tensor | None,
    ) -> None:
        prior.check_evaluating()
        self._position = 0
        self._embedding = prior.embedding.weight.detach()
        self._told = prior.told(shape, context).transpose(0, 1).contiguous().unbind()  # T x [B, C]
        self._token = prior.first(label_rows, batch)
        blocks = cast("list[TransformerBlock]", list(prior.layers))
        self._blocks = [_BlockCache(block, batch, len(self._told)) for block in blocks]
        self._logits = _normed(prior.norm, prior.logits)
        self._logits_bias = prior.logits.bias.detach()

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position."""
        x = self._token + self._told[self._position]
        for block in self._blocks:
            block.step(x, self._position)
        return torch.addmm(self._logits_bias, _standardised(x), self._logits)

    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]``, int64, of the position just asked for and moves on."""
        self._token = self._embedding[codes]
        self._position += 1


class _BlockCache:
    """The weights of one block and the keys and values of its positions."""

    def __init__(self, block: TransformerBlock, batch: int, length: int) -> None:
        channels, heads = block.attention_out.in_features, block.heads
        width = channels // heads
        self._qkv = _normed(block.attention_norm, block.qkv)
        self._qkv[:, :channels] *= width**-0.5
        self._attention_out = _matrix(block.attention_out)
        self._mlp_in = _normed(block.mlp_norm, block.mlp_in)
        self._mlp_out = _matrix(block.mlp_out)

        new = self._qkv.new_empty
        cache = new(2, batch, heads, length, width)
        self._keys, self._values = cache.flatten(1, 2)  # [B heads, T, width]
        self._slots = cache.unbind(3)  # T x [2, B, heads, width]
        self._attended = new(batch * heads, 1, width)
        self._joined = self._attended.view(batch, channels)
        projected = new(batch, 3, heads, width)
        self._projected = projected.view(batch, 3 * channels)
        self._query, self._fresh = projected[:, 0], projected[:, 1:].transpose(0, 1)
        inner = new(batch, 2 * len(self._mlp_out))
        self._inner, (self._gate, self._hidden) = inner, inner.chunk(2, dim=1)

    def step(self, x: Tensor, position: int) -> None:
        """Moves the stream ``x [B, C]`` of this position one block on, in place."""
        torch.mm(_standardised(x), self._qkv, out=self._projected)
        self._slots[position].copy_(self._fresh)
        keys, values = self._keys[:, : position + 1], self._values[:, : position + 1]
        # plain products: for one query they are faster than the fused attention
        weights = torch.bmm(self._query.reshape(len(keys), 1, -1), keys.mT).softmax(-1)
        torch.bmm(weights, values, out=self._attended)
        x.addmm_(self._joined, self._attention_out)
        torch.mm(_standardised(x), self._mlp_in, out=self._inner)
        x.addmm_(F.silu(self._gate).mul_(self._hidden), self._mlp_out)


def _standardised(x: Tensor) -> Tensor:
    """A layer norm without its weight, which the next product carries."""
    return F.layer_norm(x, x.shape[-1:])


def _normed(norm: nn.LayerNorm, linear: nn.Linear) -> Tensor:
    """The matrix ``[C, O]`` of a linear map after the weight of a layer norm."""
    return (linear.weight.detach() * norm.weight.detach()).t().contiguous()


def _matrix(linear: nn.Linear) -> Tensor:
    return linear.weight.detach().t().contiguous()
