# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.gpu``: is everything right on this GPU, and how fast is it.

Builds what is missing, checks every op and backend against float64, measures them beside their
rivals and the device's own rates, prints one table last and keeps it as JSON. Every part runs in a
process of its own, so that a crash costs one line of the table.
"""
