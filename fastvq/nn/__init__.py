# SPDX-License-Identifier: Apache-2.0
"""Quantizers: modules with state, one a file."""

from fastvq.nn.codebook import Codebook, Usage
from fastvq.nn.learning import EMA, Frozen, Gradient
from fastvq.nn.revival import Revival
from fastvq.nn.start import Given, KMeans, Uniform
from fastvq.nn.vector_quantizer import Quantized, VectorQuantizer

__all__ = [
    "EMA",
    "Codebook",
    "Frozen",
    "Given",
    "Gradient",
    "KMeans",
    "Quantized",
    "Revival",
    "Uniform",
    "Usage",
    "VectorQuantizer",
]
