# SPDX-License-Identifier: Apache-2.0
"""The cache of a :class:`PixelSNAIL`: rows, columns, and the answers of attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvq.priors._caching import affine, push_row
from fastvq.priors._positions import position_features

if TYPE_CHECKING:
    from fastvq.priors._attention import CausalAttention
    from fastvq.priors.pixelsnail import Block, GatedResidual, OutputResidual, PixelSNAIL

_silu = torch.ops.aten.silu.out


class _Layer(NamedTuple):
    """The horizontal stream of a gated residual layer: its weights, its buffers of one row."""

    weight: Tensor  # [(reach + 1) C, R]
    bias: Tensor  # [R]
    out_weight: Tensor  # [R, 2C]
    out_bias: Tensor  # [2C]
    told: Tensor  # [W, B, R], what rows above, label and context add, bias included
    inputs: Tensor  # [B, (reach + W) C], the stream after its activation
    windows: list[Tensor]  # of each column, [B, (reach + 1) C] of the inputs
    currents: list[Tensor]  # of each column, [B, C] of the inputs


class PixelSNAILStepper:
    """Logits of one position after another in raster order.

    The vertical stream runs once a row and the horizontal one once a code, each over the few
    columns it sees; attention keeps the keys and values of the codes before. A step costs
    O(layers) small products, and one over all codes before for each attention. Nothing is
    approximated: the logits equal those of the full forward up to the rounding of another order of
    summation. Weights are copied at construction: those changed later are not seen.

    Args:
        prior: in eval mode.
        batch: B, grids drawn together.
        shape: height and width of a grid in codes.
        label_rows: from :meth:`PixelSNAIL.label_rows`.
        context: ``[B, context_channels, H, W]``, or ``None`` for a prior without.

    Raises:
        RuntimeError: the prior is in training mode, where dropout would make every answer another.
    """

    @torch.no_grad()
    def __init__(
        self,
        prior: PixelSNAIL,
        batch: int,
        shape: tuple[int, int],
        label_rows: Tensor | None,
        context: Tensor | None,
    ) -> None:
        prior.check_evaluating()
        self._prior = prior
        self._reach = reach = prior.config.kernel_size // 2
        self._width = width = shape[1]
        self._row = self._column = 0
        self._label_rows, self._context = label_rows, context
        channels = prior.config.channels
        self._embedding = prior.embedding.weight.detach()
        positions = position_features(*shape, self._embedding)
        down, right = prior.input.positions(*shape)
        self._left, left_bias = affine(prior.input.left)
        self._position_down = down  # [C, H, W]
        self._position_right = right.permute(1, 2, 0) + left_bias  # [H, W, C]
        new = self._embedding.new_zeros
        self._codes_above = new(batch, channels, reach, width + 2 * reach)
        self._codes = new(batch, reach + width, channels)
        self._blocks, self._attentions = [], []
        for block in cast("list[Block]", list(prior.blocks)):
            layers = [
                _layer(layer, batch, width) for layer in cast("list[GatedResidual]", block.layers)
            ]
            attention = None
            if block.attention is not None:
                attention = _AttentionCache(block.attention, self._embedding, positions, batch)
                self._attentions.append(attention)
            self._blocks.append((layers, attention))
        depth = prior.config.blocks * prior.config.layers
        self._vertical = new(depth, batch, channels, reach + 1, width + 2 * reach)
        outputs = cast("list[OutputResidual]", list(prior.output))
        self._outputs = [(*affine(layer.inner), *affine(layer.out)) for layer in outputs]
        self._logits, self._logits_bias = affine(prior.logits)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position."""
        if self._column == 0:
            self._start_row()
        column, reach = self._column, self._reach
        window = self._codes[:, column : column + reach].flatten(1)
        stream = torch.addmm(self._position_right[self._row, column], window, self._left)
        for layers, attention in self._blocks:
            for layer in layers:
                _silu(stream, out=layer.currents[column])
                inner = torch.addmm(layer.told[column], layer.windows[column], layer.weight)
                gates = torch.addmm(layer.out_bias, F.silu(inner, inplace=True), layer.out_weight)
                stream += F.glu(gates, dim=1)
            if attention is not None:
                stream += attention.attend(F.silu(stream), self._row * self._width + column)
        for weight, bias, out_weight, out_bias in self._outputs:
            inner = torch.addmm(bias, F.silu(stream), weight)
            stream += torch.addmm(out_bias, F.silu(inner, inplace=True), out_weight)
        return torch.addmm(self._logits_bias, F.silu(stream, inplace=True), self._logits)

    @torch.no_grad()
    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]``, int64, of the position just asked for and moves on."""
        self._codes[:, self._reach + self._column] = self._embedding[codes]
        for attention in self._attentions:
            attention.append(codes, self._row * self._width + self._column)
        self._column += 1
        if self._column == self._width:
            self._row, self._column = self._row + 1, 0

    def _start_row(self) -> None:
        """Runs the vertical stream on this row and keeps what it tells the horizontal one."""
        prior, reach = self._prior, self._reach
        if self._row > 0:
            push_row(self._codes_above, self._codes[:, reach:].transpose(1, 2), reach)
        vertical = prior.input.above(self._codes_above) + self._position_down[:, self._row, None]
        context = None if self._context is None else self._context[:, :, self._row, None]
        modules = [layer for block in cast("list[Block]", prior.blocks) for layer in block.layers]
        caches = [cache for layers, _ in self._blocks for cache in layers]
        for module, cache, window in zip(
            cast("list[GatedResidual]", modules), caches, self._vertical, strict=True
        ):
            above, left = module.conditions(self._label_rows, context)
            push_row(window, F.silu(vertical)[:, :, 0], reach)
            vertical = module.down(vertical, window, above)
            told = module.vertical_to_horizontal(vertical) + left  # [B, R, 1, W]
            torch.add(told[:, :, 0].permute(2, 0, 1), cache.bias, out=cache.told)


def _layer(layer: GatedResidual, batch: int, width: int) -> _Layer:
    """Weights as matrices, buffers of one row, zero where the convolution pads."""
    weight, bias = affine(layer.horizontal)
    inner, channels, _, taps = layer.horizontal.weight.shape
    inputs = weight.new_zeros(batch, (taps - 1 + width) * channels)
    windows = [inputs[:, c * channels : (c + taps) * channels] for c in range(width)]
    return _Layer(
        weight,
        bias,
        *affine(layer.horizontal_out),
        weight.new_zeros(width, batch, inner),
        inputs,
        windows,
        [window[:, -channels:] for window in windows],
    )


class _AttentionCache:
    """Keys and values of the codes before, ``[B, heads, T, key + value channels]``.

    What a position knows enters its answer when it is asked for, its code when that is fixed.
    """

    def __init__(
        self, attention: CausalAttention, embedding: Tensor, positions: Tensor, batch: int
    ) -> None:
        heads, keys = attention.heads, attention.key_channels
        answer = attention.nothing.shape[1]
        self._shape = (batch, heads, keys + answer)
        # queries times keys, over the root of the number of key channels: folded into the queries
        scale = embedding.new_ones(heads, keys + answer)
        scale[:, :keys] = keys**-0.5
        self._stream = attention.stream.weight.detach().t() * scale.flatten()
        self._position = attention.position(positions.flatten(0, 1)) * scale.flatten()  # [T, ...]
        self._code = attention.code(embedding).view(-1, heads, answer)  # [K, heads, answer]
        self._out, self._out_bias = attention.out.weight.detach().t(), attention.out.bias.detach()
        size = len(self._position)
        self._answers = embedding.new_empty(batch, heads, size + 1, answer)
        self._answers[:, :, 0] = attention.nothing
        flat = self._answers.view(batch * heads, size + 1, answer)
        self._keys, self._values = flat[..., :keys].transpose(1, 2), flat[..., keys:]

    def attend(self, stream: Tensor, position: int) -> Tensor:
        """What the stream ``[B, C]`` at a position gains; its answer awaits its code."""
        asked = torch.addmm(self._position[position], stream, self._stream).view(self._shape)
        batch, heads, _ = self._shape
        keys = self._keys.shape[1]
        self._answers[:, :, position + 1] = asked[..., keys:]
        query = asked[..., :keys].reshape(batch * heads, 1, keys)
        seen = position + 1  # the answer of nothing, and those of all positions before
        weights = torch.softmax(torch.bmm(query, self._keys[..., :seen]), dim=-1)
        attended = torch.bmm(weights, self._values[:, :seen]).view(batch, -1)
        return F.glu(torch.addmm(self._out_bias, attended, self._out), dim=-1)

    def append(self, codes: Tensor, position: int) -> None:
        """Completes the answer of a position with its codes ``[B]``."""
        self._answers[:, :, position + 1] += self._code[codes]
