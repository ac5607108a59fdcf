# SPDX-License-Identifier: Apache-2.0
"""The cache of a :class:`GatedPixelCNN`: vertical stream once a row, horizontal once a code."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from fastvq.priors._caching import affine, matrix, push_row

if TYPE_CHECKING:
    from fastvq.priors.pixelcnn import GatedLayer, GatedPixelCNN


class _LayerStep(NamedTuple):
    """One layer at one column: its weights, and views into the buffers of the row."""

    above: Tensor  # [B, 2C], what the rows above and the label add
    window: Tensor  # [B, (reach + 1) C], the layer's input at this column and to its left
    weight: Tensor  # [(reach + 1) C, 2C]
    current: Tensor  # [B, C], the layer's input at this column
    out_weight: Tensor  # [C, C]
    following: Tensor  # [B, C], where the layer's output goes


class GatedPixelCNNStepper:
    """Logits of one position after another in raster order, each in O(layers) small products.

    Full recomputation runs the whole grid for every position; here the work of a position is done
    once. Nothing is approximated: the logits equal those of the full forward up to the rounding
    of another order of summation.

    The gate ``tanh(a) sigmoid(b)`` is computed as ``tanh(a) (1 + tanh(b / 2)) / 2``, one ``tanh``
    over both halves, the halvings folded into copies of the weights. The price of a step of a
    small net is the number of its operators, so copies and views are made at construction: weights
    changed later are not seen.

    Source: Ramachandran et al. 2017, https://arxiv.org/abs/1704.06001.

    Args:
        prior: in eval mode.
        batch: B, grids drawn together.
        shape: height and width of a grid in codes.
        label_rows: from :meth:`GatedPixelCNN.label_rows`.
        context: ``[B, context_channels, H, W]``, or ``None`` for a prior without.

    Attributes:
        period: the width: see :class:`PeriodicStepper`.

    Raises:
        RuntimeError: the prior is in training mode, where dropout would make every answer another.
    """

    @torch.no_grad()
    def __init__(
        self,
        prior: GatedPixelCNN,
        batch: int,
        shape: tuple[int, int],
        label_rows: Tensor | None,
        context: Tensor | None,
    ) -> None:
        prior.check_evaluating()
        self._prior = prior
        self._layers = cast("list[GatedLayer]", list(prior.layers))
        self._reach = prior.config.kernel_size // 2
        self.period, self._column = shape[1], 0
        self._label_rows, self._context = label_rows, context
        self._copy_weights()
        down, right = prior.input.positions(*shape)
        self._position_down = down  # [C, H, W]
        self._position_right = right.permute(1, 2, 0) + self._left_bias  # [H, W, C]
        self._allocate(batch)

    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position."""
        if self._column == 0:
            self._start_row()
        window, first, layers = self._steps[self._column]
        torch.addmm(self._first[self._column], window, self._left, out=first)
        gates, gated, signal, gate = self._scratch
        for above, window, weight, current, out_weight, following in layers:
            torch.addmm(above, window, weight, out=gates).tanh_()
            torch.addcmul(signal, signal, gate, out=gated)
            torch.addmm(current, gated, out_weight, out=following)
        hidden = torch.addmm(self._hidden_bias, F.silu(self._last), self._hidden)
        return torch.addmm(self._logits_bias, F.silu(hidden, inplace=True), self._logits)

    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]``, int64, of the position just asked for and moves on."""
        self._chosen[self._column].copy_(self._embedding[codes])
        self._column += 1
        if self._column == self.period:
            self._column = 0

    @torch.no_grad()
    def _start_row(self) -> None:
        """Runs the vertical stream on this row and keeps what it tells the horizontal one."""
        prior, reach = self._prior, self._reach
        # above the first row stand the zeros of before it
        push_row(self._codes_above, self._codes[:, reach:].transpose(1, 2), reach)
        torch.index_select(self._position_right, 0, self._row, out=self._right)
        down = self._position_down.index_select(1, self._row)
        vertical = prior.input.above(self._codes_above) + down
        context = None if self._context is None else self._context.index_select(2, self._row)
        self._row += 1
        for index, layer in enumerate(self._layers):
            above, left = layer.conditions(self._label_rows, context)
            push_row(self._vertical[index], vertical[:, :, 0], reach)
            vertical = layer.down(vertical, self._vertical[index], above)
            told = layer.vertical_to_horizontal(vertical) + left  # [B, 2C, 1, W]
            told = told[:, :, 0].permute(2, 0, 1)  # [W, B, 2C]
            torch.addcmul(self._biases[index], told, self._halved, out=self._above[index])

    def _copy_weights(self) -> None:
        prior = self._prior
        self._embedding = prior.embedding.weight.detach()
        ones = self._embedding.new_ones(prior.config.channels)
        self._halved = torch.cat([ones, 0.5 * ones])
        self._left, self._left_bias = affine(prior.input.left)
        horizontal = [affine(layer.horizontal) for layer in self._layers]
        self._weights = [weight * self._halved for weight, _ in horizontal]
        self._biases = [bias * self._halved for _, bias in horizontal]
        self._out = [0.5 * matrix(layer.horizontal_out.weight) for layer in self._layers]
        self._hidden, self._hidden_bias = affine(prior.hidden)
        self._logits, self._logits_bias = affine(prior.logits)

    def _allocate(self, batch: int) -> None:
        """Buffers of one row, zero where the convolutions pad, and the views of every column."""
        config, reach, width = self._prior.config, self._reach, self.period
        channels, depth = config.channels, config.layers
        new = self._embedding.new_zeros
        # a tensor, not a number, which a graph of one row would keep for all rows
        self._row = new(1, dtype=torch.int64)
        self._right = new(1, width, channels)
        self._first = self._right[0].unbind()
        self._codes_above = new(batch, channels, reach, width + 2 * reach)
        self._vertical = new(depth, batch, channels, reach + 1, width + 2 * reach)
        self._above = new(depth, width, batch, 2 * channels)
        self._codes = new(batch, reach + width, channels)
        horizontal = new(depth, batch, (reach + width) * channels)
        self._last = new(batch, channels)
        gates = new(batch, 2 * channels)
        # g = tanh(a) (1 + tanh(b / 2)) = signal + signal * gate
        self._scratch = gates, new(batch, channels), gates[:, :channels], gates[:, channels:]

        self._chosen = [self._codes[:, reach + column] for column in range(width)]
        self._steps = []
        for column in range(width):
            start, stop = column * channels, (column + reach) * channels
            inputs = [rows[:, stop : stop + channels] for rows in horizontal]
            layers = [
                _LayerStep(
                    self._above[index, column],
                    horizontal[index, :, start : stop + channels],
                    self._weights[index],
                    inputs[index],
                    self._out[index],
                    inputs[index + 1] if index + 1 < depth else self._last,
                )
                for index in range(depth)
            ]
            window = self._codes.view(batch, -1)[:, start:stop]
            self._steps.append((window, inputs[0], layers))
