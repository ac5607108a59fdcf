# SPDX-License-Identifier: Apache-2.0
"""All levels of residual quantization in one call."""

from fastvq.ops.residual.api import Residual, level_statistics, residual
from fastvq.ops.residual.beam import beam_search

__all__ = ["Residual", "beam_search", "level_statistics", "residual"]
