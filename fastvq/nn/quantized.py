# SPDX-License-Identifier: Apache-2.0
"""What every quantizer returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Quantized(NamedTuple):
    """What a quantizer returns.

    Attributes:
        quantized: the vectors of the codes, in the shape and dtype of the input.
        indices: int64, the shape of the input without its channels, ``[..., H]`` with several
            heads; -1 where masked.
        loss: 0-d, weighted, ready to add to the model's loss.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
