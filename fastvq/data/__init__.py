# SPDX-License-Identifier: Apache-2.0
"""Readers of images: what a model trains on, split the same way on every machine."""

from fastvq.data.digits import digits
from fastvq.data.examples import ExampleSet, Splits
from fastvq.data.folders import folder
from fastvq.data.sources import DIGITS, DataConfig, load

__all__ = ["DIGITS", "DataConfig", "ExampleSet", "Splits", "digits", "folder", "load"]
