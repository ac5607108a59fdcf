# SPDX-License-Identifier: Apache-2.0
"""Mimi's codebook, as Hugging Face transformers has it."""

from __future__ import annotations

from torch import Tensor

from fastvq import ops
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
