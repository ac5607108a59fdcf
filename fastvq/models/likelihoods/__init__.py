# SPDX-License-Identifier: Apache-2.0
"""What the output of a decoder means: a distribution of the data, one small class each.

Data ``x [B, C, ...]`` has values in [0, 1]; the discrete likelihoods take the ``levels`` values
``0, 1 / (levels - 1), ..., 1`` only. ``parameters [B, P, ...]`` is what the decoder returns for it,
``P = parameter_channels(C)``. All is computed in float32 (float64 for float64), whatever autocast
does around it. Random numbers are drawn on the generator's device, by default the CPU, so that a
seed means the same wherever the model is.
"""

from fastvq.models.likelihoods.base import Discrete, Likelihood
from fastvq.models.likelihoods.logistic_mixture import LogisticMixture
from fastvq.models.likelihoods.mse import MSE
from fastvq.models.likelihoods.softmax import Softmax
from fastvq.models.likelihoods.table import LIKELIHOODS, LikelihoodConfig, make_likelihood

__all__ = [
    "LIKELIHOODS",
    "MSE",
    "Discrete",
    "Likelihood",
    "LikelihoodConfig",
    "LogisticMixture",
    "Softmax",
    "make_likelihood",
]
