# SPDX-License-Identifier: Apache-2.0
"""The cache of a :class:`WaveNet`: every layer remembers its inputs of a dilation ago."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from fastvq.priors.wavenet import WaveNet, WaveNetLayer

# positions whose context is projected at once, a power of two like every dilation: enough that the
# products run at speed, few enough that the result stays small
_CHUNK = 64


class WaveNetStepper:
    """Logits of one position after another, each in four small operators per layer.

    A layer of dilation d reads its own inputs d, 2d, ... positions ago. What they add to the gates
    of d consecutive positions is known before the first of these, so it is computed once for all d
    in one product; only the tap of the current position is left to the step. Inputs live in a ring
    of (kernel_size - 1) d rows, the work of a step depends neither on its position nor on the
    reach, and context and label are folded in where the rows begin. Nothing is approximated: the
    logits equal those of the full forward up to the rounding of another order of summation.

    The gate ``tanh(a) sigmoid(b)`` is computed as ``tanh(a) (1 + tanh(b / 2)) / 2``, one ``tanh``
    over both halves, the halvings folded into copies of the weights. Copies and views are made at
    construction: weights changed later are not seen.

    Source: Paine et al. 2016, "Fast Wavenet Generation Algorithm",
    https://arxiv.org/abs/1611.09482.

    Args:
        prior: in eval mode.
        batch: B, sequences drawn together.
        length: L, positions of a sequence.
        label_rows: from :meth:`WaveNet.label_rows`.
        context: ``[B, context_channels, l]``, l dividing L, or ``None`` for a prior without.

    Attributes:
        period: after which all blocks and rings begin together again: see
            :class:`PeriodicStepper`.

    Raises:
        RuntimeError: the prior is in training mode, where dropout would make every answer another.
    """

    @torch.no_grad()
    def __init__(
        self,
        prior: WaveNet,
        batch: int,
        length: int,
        label_rows: Tensor | None,
        context: Tensor | None,
    ) -> None:
        prior.check_evaluating()
        self._embedding = prior.embedding.weight.detach()
        if context is not None:
            context = context.detach().permute(2, 0, 1).contiguous()  # [l, B, context_channels]
        layers = cast("list[WaveNetLayer]", list(prior.layers))
        self._layers = [_LayerCache(layer, batch, length, label_rows, context) for layer in layers]
        self.period = math.lcm(*(n for layer in self._layers for n in (layer.period, layer.span)))
        self._position = 0  # in its period
        self._entering = self._embedding.new_zeros(batch, self._embedding.shape[1])

        gated = prior.config.gate_channels
        self._gated = self._embedding.new_empty(batch, len(layers) * gated)
        gates = self._embedding.new_empty(batch, 2 * gated)
        # g = tanh(a) (1 + tanh(b / 2)) = signal + signal * gate
        self._scratch = gates, gates[:, :gated], gates[:, gated:], self._gated.split(gated, dim=1)

        # the sum over the skip connections is one product of all gates with stacked weights
        self._skip = torch.cat([0.5 * _tap(layer.skip, 0) for layer in layers])
        self._skip_bias = torch.stack([_bias(layer.skip) for layer in layers]).sum(0)
        self._hidden, self._hidden_bias = _tap(prior.hidden, 0), _bias(prior.hidden)
        self._logits, self._logits_bias = _tap(prior.logits, 0), _bias(prior.logits)

    def logits(self) -> Tensor:
        """Logits ``[B, K]`` of the next position."""
        position = self._position
        # before this position is written anywhere: its row is that of the oldest one still needed
        for layer in self._layers:
            if position % layer.block == 0:
                layer.start_block(position)
        gates, signal, gate, gated = self._scratch
        rows = [layer.inputs[position % layer.span] for layer in self._layers]
        rows[0].copy_(self._entering)
        for index, (layer, row) in enumerate(zip(self._layers, rows, strict=True)):
            torch.addmm(layer.told[position % layer.period], row, layer.weight, out=gates).tanh_()
            torch.addcmul(signal, signal, gate, out=gated[index])
            if layer.residual is not None:
                torch.addmm(row, gated[index], layer.residual, out=rows[index + 1])
        skipped = torch.addmm(self._skip_bias, self._gated, self._skip)
        hidden = torch.addmm(self._hidden_bias, F.silu(skipped, inplace=True), self._hidden)
        return torch.addmm(self._logits_bias, F.silu(hidden, inplace=True), self._logits)

    def append(self, codes: Tensor) -> None:
        """Fixes the codes ``[B]``, int64, of the position just asked for and moves on."""
        self._position = (self._position + 1) % self.period
        torch.index_select(self._embedding, 0, codes, out=self._entering)


class _LayerCache:
    """One layer: its inputs of late, and what they, the label and the context tell its gates.

    Attributes:
        block: how many positions are told at once: the dilation, or all where these are fewer.
        span: rows of the ring ``inputs``, each ``[B, C]``; position t is row t % span.
        period: rows of ``told``, each ``[B, 2G]``; position t is row t % period.
        weight: ``[C, 2G]``, the tap of the current position.
        residual: ``[G, C]``; ``None`` for the last layer.
    """

    def __init__(
        self,
        layer: WaveNetLayer,
        batch: int,
        length: int,
        label_rows: Tensor | None,
        context: Tensor | None,
    ) -> None:
        (dilation,), (taps,) = layer.dilated.dilation, layer.dilated.kernel_size
        self.block = min(dilation, length)
        self.span = (taps - 1) * self.block
        self.period = max(self.block, _CHUNK)

        base = _bias(layer.dilated)
        halved = torch.ones_like(base)
        halved[len(base) // 2 :] = 0.5
        if layer.condition is not None:
            base = base + layer.condition(label_rows).detach()  # [B, 2G]
        self._base = (base * halved).expand(batch, -1)
        self._context = context
        if context is not None:
            # a tensor, not a number, which a graph of one period would keep for all periods
            self._positions = torch.arange(self.period, device=context.device)
            self._codes_per_column = length // len(context)
        if layer.context is not None:
            self._context_weight = _tap(layer.context, 0) * halved
        *past, self.weight = (_tap(layer.dilated, tap) * halved for tap in range(taps))
        self._past = past
        self.residual = None if layer.residual is None else 0.5 * _tap(layer.residual, 0)

        # zero as the convolution pads
        blocks = base.new_zeros(taps - 1, self.block, batch, len(self.weight))
        self.inputs = blocks.flatten(0, 1).unbind()
        self._blocks = blocks.flatten(1, 2).unbind()  # [block B, C]
        self._told = base.new_empty(self.period, batch, len(halved))
        self.told = self._told.unbind()
        # views cost as much as small products, so they are made once
        self._told_blocks = self._told.flatten(0, 1).split(self.block * batch)

    def start_block(self, position: int) -> None:
        """Tells the gates of the next ``block`` positions all but their own inputs."""
        if position % self.period == 0:
            self._start_period()
        number = position // self.block
        told = self._told_blocks[number % len(self._told_blocks)]
        # block n is kept where n - taps + 1 was, the oldest of those that this one needs
        for age, weight in enumerate(self._past):
            told.addmm_(self._blocks[(number + age) % len(self._past)], weight)

    def _start_period(self) -> None:
        self._told.copy_(self._base)
        if self._context is not None:
            columns = self._positions // self._codes_per_column
            # what is told of positions beyond the last is never asked for
            context = self._context.index_select(0, columns.clamp_(max=len(self._context) - 1))
            self._told.flatten(0, 1).addmm_(context.flatten(0, 1), self._context_weight)
            self._positions.add_(self.period)


def _tap(convolution: nn.Conv1d, tap: int) -> Tensor:
    """One tap of a kernel ``[O, C, taps]`` as the matrix ``[C, O]`` that a row is multiplied by."""
    return convolution.weight.detach()[:, :, tap].t().contiguous()


def _bias(convolution: nn.Conv1d) -> Tensor:
    bias = convolution.bias
    assert bias is not None
    return bias.detach()
