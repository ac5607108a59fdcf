# SPDX-License-Identifier: Apache-2.0
"""Autoregressive priors over grids of codes, and exact sampling from them."""

from fastvq.priors.base import Context, Prior, PriorConfig, Stepper
from fastvq.priors.metrics import bits_per_code, entropy_bits, per_position_bits
from fastvq.priors.pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from fastvq.priors.sampling import RecomputeStepper, probabilities, sample, sample_from

__all__ = [
    "Context",
    "GatedPixelCNN",
    "GatedPixelCNNConfig",
    "Prior",
    "PriorConfig",
    "RecomputeStepper",
    "Stepper",
    "bits_per_code",
    "entropy_bits",
    "per_position_bits",
    "probabilities",
    "sample",
    "sample_from",
]
