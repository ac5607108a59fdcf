# SPDX-License-Identifier: Apache-2.0
"""Mimi's quantizer, as Hugging Face transformers has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastvq import ops
from fastvq.compat import _residual
from fastvq.compat._fast import Fast


class FastEuclideanCodebook(Fast):
    """The nearest code without the matrix of distances.

    The peer takes ``torch.cdist`` in float32, which expands the square for more than 25 vectors and
    takes roots: codes whose distances agree to its rounding are told apart here. Its ``embed`` is
    computed once and kept, also over a later ``load_state_dict``; that is left as it is. A row
    holding NaN gets index 0.
    """

    embed: Tensor

    def quantize(self, hidden_states: Tensor) -> Tensor:
        """Indices ``[N]`` of hidden states ``[N, D]``."""
        # the peer's own widening, and not the search's: float64 is narrowed by it
        return ops.nearest(hidden_states.float(), self.embed.float()).indices


class FastResidualVectorQuantizer(_residual.FastResidual):
    """All levels in one call, in the arithmetic of the peer's loop over them.

    The loop stays, over codebooks with :class:`FastEuclideanCodebook`, where what a level leaves
    over is not float32 in the peer, and where the levels lie on several devices. The codes that the
    peer's codebooks keep become views of one tensor ``[Q, K, D]``, so that no call gathers them.
    """

    fast_codebook = FastEuclideanCodebook
    layers: nn.ModuleList
    num_quantizers: int
    input_proj: nn.Module | None
    _stacked: Tensor | None = None
    _kept: tuple[Tensor, ...] = ()

    def encode(self, embeddings: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Indices ``[Q, B, T]`` of embeddings ``[B, hidden size, T]``."""
        count = self.num_quantizers if num_quantizers is None else num_quantizers
        codebooks = self._codebooks()
        if codebooks is None or len(codebooks[:count]) == 0 or _is_other(embeddings, codebooks):
            return self._peers_encode(embeddings, num_quantizers)
        latents = embeddings if self.input_proj is None else self.input_proj(embeddings)
        return _residual.encode(latents, codebooks[:count])

    def _codebooks(self) -> Tensor | None:
        """The codes of all levels ``[Q, K, D]``; ``None`` where they cannot be one tensor."""
        layers: Iterable[Any] = self.layers
        books = [layer.codebook for layer in layers]
        codes = [book.embed for book in books]
        if not _same(codes, self._kept):
            if not _residual.stackable(codes):
                return None
            self._stacked = torch.stack(codes)
            self._kept = self._stacked.unbind()
            for book, view in zip(books, self._kept, strict=True):
                book._embed = view
        return self._stacked


def _is_other(embeddings: Tensor, codebooks: Tensor) -> bool:
    """Whether the peer's ``residual - quantized`` is in another dtype than its search, float32."""
    return torch.promote_types(embeddings.dtype, codebooks.dtype) != torch.float32


def _same(codes: Sequence[Tensor], kept: Sequence[Tensor]) -> bool:
    return len(codes) == len(kept) and all(a is b for a, b in zip(codes, kept, strict=True))
