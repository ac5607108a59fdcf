# SPDX-License-Identifier: Apache-2.0
"""The models and priors, trained and measured: ``python -m benchmarks.models``."""
