# SPDX-License-Identifier: Apache-2.0
"""Vector quantization for PyTorch at the speed of the hardware."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastvq import nn, ops
from fastvq._backends import BackendStatus, backends, use_backend
from fastvq.nn import (
    BSQ,
    EMA,
    FSQ,
    IBQ,
    LFQ,
    Diversity,
    Frozen,
    Given,
    Gradient,
    GroupedResidualVQ,
    GumbelVQ,
    KMeans,
    MultiScaleQuantized,
    MultiScaleVQ,
    Orthogonality,
    ProjectedResidualVQ,
    QINCo,
    Quantized,
    RandomProjectionQuantizer,
    ResidualFSQ,
    ResidualLFQ,
    ResidualSimVQ,
    ResidualVQ,
    Revival,
    SimVQ,
    Uniform,
    Usage,
    VectorQuantizer,
)

__version__ = "0.1.0"

# `compat` stands above these names, and the first who asks for it loads it
accelerate: Callable[..., Any]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in ("accelerate", "compat"):
            raise AttributeError(f"module 'fastvq' has no attribute {name!r}")
        compat = importlib.import_module("fastvq.compat")
        return compat if name == "compat" else compat.accelerate


__all__ = [
    "BSQ",
    "EMA",
    "FSQ",
    "IBQ",
    "LFQ",
    "BackendStatus",
    "Diversity",
    "Frozen",
    "Given",
    "Gradient",
    "GroupedResidualVQ",
    "GumbelVQ",
    "KMeans",
    "MultiScaleQuantized",
    "MultiScaleVQ",
    "Orthogonality",
    "ProjectedResidualVQ",
    "QINCo",
    "Quantized",
    "RandomProjectionQuantizer",
    "ResidualFSQ",
    "ResidualLFQ",
    "ResidualSimVQ",
    "ResidualVQ",
    "Revival",
    "SimVQ",
    "Uniform",
    "Usage",
    "VectorQuantizer",
    "accelerate",
    "backends",
    "nn",
    "ops",
    "use_backend",
]
