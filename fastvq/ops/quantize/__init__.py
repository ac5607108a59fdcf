# SPDX-License-Identifier: Apache-2.0
"""Codes in, vectors, losses and their gradients out."""

from fastvq.ops.quantize.api import Quantize, quantize

__all__ = ["Quantize", "quantize"]
