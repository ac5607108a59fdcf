# SPDX-License-Identifier: Apache-2.0
"""The softmax over the codes as a stream: entropies, soft assignment, cross entropy, sampling."""

from fastvq.ops.entropy.api import (
    Entropy,
    code_cross_entropy,
    distribution_entropy,
    entropy,
    sample_codes,
    soft_assignment,
)

__all__ = [
    "Entropy",
    "code_cross_entropy",
    "distribution_entropy",
    "entropy",
    "sample_codes",
    "soft_assignment",
]
