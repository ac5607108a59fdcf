# SPDX-License-Identifier: Apache-2.0
"""All levels of residual quantization in one call."""

from fastvq.ops.residual.api import Residual, level_statistics, residual

__all__ = ["Residual", "level_statistics", "residual"]
