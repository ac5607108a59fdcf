# SPDX-License-Identifier: Apache-2.0
"""The command line: it reads options, calls `fastvq.training`, and prints."""
