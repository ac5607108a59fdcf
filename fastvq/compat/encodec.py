# SPDX-License-Identifier: Apache-2.0
"""EnCodec's codebook, as Hugging Face transformers has it, and its copies in other codecs."""

from __future__ import annotations

from torch import Tensor

from fastvq import ops
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
