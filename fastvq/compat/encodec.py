# SPDX-License-Identifier: Apache-2.0
"""EnCodec's quantizer, as Hugging Face transformers has it, and its copies in other codecs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastvq import ops
from fastvq.compat import _residual
from fastvq.compat._fast import Fast


class FastEuclideanCodebook(Fast):
    """The nearest code without the matrix of distances.

    The peer expands the square, :math:`x^2 - 2xc + c^2`, in the dtype of the model. Where that
    rounding picks a code that is not the nearest (in float16 and bfloat16, or far from the origin),
    the code here is another one. A row holding NaN gets index 0.
    """

    embed: Tensor

    def quantize(self, hidden_states: Tensor) -> Tensor:
        """Indices ``[N]`` of hidden states ``[N, D]``."""
        return ops.nearest(hidden_states, self.embed).indices


class FastResidualVectorQuantizer(_residual.FastResidual):
    """All levels in one call, in the arithmetic of the peer's loop over them.

    The loop stays, over codebooks with :class:`FastEuclideanCodebook`, where the call would not be
    the same: in 16 bits, where the peer rounds what a level leaves over, and where the levels lie
    on several devices.
    """

    fast_codebook = FastEuclideanCodebook
    get_num_quantizers_for_bandwidth: Callable[[float | None], int]

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        """Indices ``[Q, B, T]`` of embeddings ``[B, D, T]``; Q is what the bandwidth allows."""
        levels: Any = getattr(self, self.levels_name)
        count = self.get_num_quantizers_for_bandwidth(bandwidth)
        books = [level.codebook.embed for level in levels[:count]]
        if not _residual.stackable(books) or _rounds(embeddings, books[0]):
            return self._peers_encode(embeddings, bandwidth)
        return _residual.encode(embeddings, books)


class FastResidualVectorQuantization(FastResidualVectorQuantizer):
    """X-Codec's copy, which has another name for its levels."""

    levels_name = "quantizers"

    def encode(self, embeddings: Tensor, bandwidth: float | None = None) -> Tensor:
        """Indices ``[Q, B, T]`` of embeddings ``[B, D, T]``; Q is what the bandwidth allows."""
        return super().encode(embeddings, bandwidth)


def _rounds(embeddings: Tensor, codebook: Tensor) -> bool:
    """Whether the peer's ``residual - quantized`` is in 16 bits."""
    dtype = torch.promote_types(embeddings.dtype, codebook.dtype)
    return dtype in (torch.float16, torch.bfloat16)
