# SPDX-License-Identifier: Apache-2.0
"""Inputs, error budgets and comparisons that tests and benchmarks share."""

from fastvq.testing.cases import (
    NEAREST_CASES,
    SHAPES,
    NearestCase,
    channels_first,
    clustered,
    gaussian,
)
from fastvq.testing.close import (
    NEAREST_BUDGET,
    assert_nearest,
    assert_within,
    exact_distances,
    wrong_codes,
)

__all__ = [
    "NEAREST_BUDGET",
    "NEAREST_CASES",
    "SHAPES",
    "NearestCase",
    "assert_nearest",
    "assert_within",
    "channels_first",
    "clustered",
    "exact_distances",
    "gaussian",
    "wrong_codes",
]
