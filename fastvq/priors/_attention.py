# SPDX-License-Identifier: Apache-2.0
"""Attention of every position to the codes strictly before it, for :class:`PixelSNAIL`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq.priors._positions import POSITION_FEATURES


class CausalAttention(nn.Module):
    r"""Multi-head attention of position t to the positions before it and to "nothing".

    A position asks with what it knows, the codes before it, and answers with that and its own code.
    Position t may therefore read the answers of s < t only. Before all answers stands a learned
    one: the first position reads it alone, the others may prefer it to any code. Shifted by one
    like that, the mask is the plain causal one of
    :func:`torch.nn.functional.scaled_dot_product_attention`.

    Source: Chen et al. 2017, https://arxiv.org/abs/1712.09763, section 3.

    Args:
        channels: C of the stream and of the embedded codes.
        heads: number of heads.
        key_channels: of a head's queries and keys.
        value_channels: of a head's values.
        dropout: probability of dropping an attention weight in training.
    """

    def __init__(
        self, channels: int, heads: int, key_channels: int, value_channels: int, dropout: float
    ) -> None:
        super().__init__()
        self.heads, self.key_channels, self.dropout = heads, key_channels, dropout
        answer = key_channels + value_channels
        # for each head its query, key and value, one after another
        self.stream = nn.Linear(channels, heads * (key_channels + answer), bias=False)
        self.position = nn.Linear(POSITION_FEATURES, heads * (key_channels + answer))
        self.code = nn.Linear(channels, heads * answer, bias=False)
        self.nothing = nn.Parameter(0.1 * torch.randn(heads, answer))
        self.out = nn.Linear(heads * value_channels, 2 * channels)

    def forward(self, stream: Tensor, codes: Tensor, positions: Tensor) -> Tensor:
        """What the stream gains, ``[B, T, C]``.

        Args:
            stream: ``[B, T, C]``; at t it depends on the codes before t alone.
            codes: embedded codes ``[B, T, C]``.
            positions: ``[T, POSITION_FEATURES]``.
        """
        asked = self.stream(stream) + self.position(positions)
        asked = asked.unflatten(-1, (self.heads, self.key_channels + self.nothing.shape[1]))
        query, answer = asked.tensor_split([self.key_channels], dim=-1)
        answer = answer + self.code(codes).view(answer.shape)
        # what stands at t answers for the code at t - 1
        answers = torch.cat([self.nothing.expand(len(codes), 1, -1, -1), answer[:, :-1]], dim=1)
        key, value = answers.tensor_split([self.key_channels], dim=-1)
        attended = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=True,
        )
        return F.glu(self.out(attended.transpose(1, 2).flatten(2)), dim=-1)
