# SPDX-License-Identifier: Apache-2.0
"""Other libraries' quantizers: swapped in place, or converted. Imports none of those libraries."""

from fastvq.compat.acceleration import Acceleration, Left, Replaced, accelerate
from fastvq.compat.checkpoints import Converted, from_fastvq, to_fastvq
from fastvq.compat.lucidrains import from_lucidrains

__all__ = [
    "Acceleration",
    "Converted",
    "Left",
    "Replaced",
    "accelerate",
    "from_fastvq",
    "from_lucidrains",
    "to_fastvq",
]
