# SPDX-License-Identifier: Apache-2.0
"""The quantizer of the Descript Audio Codec, as Hugging Face transformers has it."""

from __future__ import annotations

from torch import Tensor, nn

from fastvq import ops
from fastvq.compat._fast import Fast


class FastVectorQuantize(Fast):
    """The code of the nearest direction, without the matrix of distances.

    The peer normalizes vectors and codes, and subtracts the squared norm of a code where it should
    add it: harmless while that is 1. Here it is the cosine of both as they are. They part where
    the peer's rounding picks a code that is not the nearest, foremost in 16 bits, and for a code
    that is zero, whose cosine is 0 here. A row that is zero or holds NaN gets index 0.
    """

    codebook: nn.Embedding

    def decode_latents(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Codes ``[B, D, T]`` and indices ``[B, T]`` of latents ``[B, D, T]``."""
        if hasattr(self.codebook, "_hf_hook"):
            # weights that Hugging Face's accelerate brings in only for the peer's own method
            return super().decode_latents(hidden_states)  # type: ignore[misc]
        rows = hidden_states.transpose(1, 2)  # [B, T, D]
        indices = ops.nearest(rows, self.codebook.weight, metric="cosine").indices
        return self.codebook(indices).transpose(1, 2), indices
