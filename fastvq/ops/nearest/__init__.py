# SPDX-License-Identifier: Apache-2.0
"""Exact nearest-codebook search."""

from fastvq.ops.nearest.api import Nearest, nearest

__all__ = ["Nearest", "nearest"]
