# SPDX-License-Identifier: Apache-2.0
"""Other libraries' quantizers by their names: constructor, results and checkpoints as there."""

from fastvq.compat.adapters.codecs import (
    EncodecResidualVectorQuantizer,
    MimiResidualVectorQuantizer,
    MimiSplitResidualVectorQuantizer,
)
from fastvq.compat.adapters.images import Quantize, RQBottleneck
from fastvq.compat.adapters.taming import VectorQuantizer2

__all__ = [
    "EncodecResidualVectorQuantizer",
    "MimiResidualVectorQuantizer",
    "MimiSplitResidualVectorQuantizer",
    "Quantize",
    "RQBottleneck",
    "VectorQuantizer2",
]
