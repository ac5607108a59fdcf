# SPDX-License-Identifier: Apache-2.0
"""Vector quantization for PyTorch at the speed of the hardware."""

from fastvq import nn, ops
from fastvq._backends import BackendStatus, backends, use_backend
from fastvq.nn import (
    EMA,
    Frozen,
    Given,
    Gradient,
    KMeans,
    Quantized,
    Revival,
    Uniform,
    Usage,
    VectorQuantizer,
)

__version__ = "0.1.0"

__all__ = [
    "EMA",
    "BackendStatus",
    "Frozen",
    "Given",
    "Gradient",
    "KMeans",
    "Quantized",
    "Revival",
    "Uniform",
    "Usage",
    "VectorQuantizer",
    "backends",
    "nn",
    "ops",
    "use_backend",
]
