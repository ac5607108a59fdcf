# SPDX-License-Identifier: Apache-2.0
"""Counts and sums of the vectors of each code."""

from fastvq.ops.statistics.api import Statistics, statistics

__all__ = ["Statistics", "statistics"]
