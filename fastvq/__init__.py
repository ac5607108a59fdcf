# SPDX-License-Identifier: Apache-2.0
"""Vector quantization for PyTorch at the speed of the hardware."""

from fastvq import ops
from fastvq._backends import BackendStatus, backends, use_backend

__version__ = "0.1.0"

__all__ = [
    "BackendStatus",
    "backends",
    "ops",
    "use_backend",
]
