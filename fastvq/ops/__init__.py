# SPDX-License-Identifier: Apache-2.0
"""The stateless maths: one folder an op, every op with interchangeable backends."""

from fastvq.ops.entropy import (
    Entropy,
    code_cross_entropy,
    distribution_entropy,
    entropy,
    sample_codes,
    soft_assignment,
)
from fastvq.ops.nearest import Nearest, nearest
from fastvq.ops.quantize import Quantize, quantize
from fastvq.ops.residual import Residual, beam_search, level_statistics, residual
from fastvq.ops.statistics import Statistics, statistics

__all__ = [
    "Entropy",
    "Nearest",
    "Quantize",
    "Residual",
    "Statistics",
    "beam_search",
    "code_cross_entropy",
    "distribution_entropy",
    "entropy",
    "level_statistics",
    "nearest",
    "quantize",
    "residual",
    "sample_codes",
    "soft_assignment",
    "statistics",
]
