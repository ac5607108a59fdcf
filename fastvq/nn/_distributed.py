# SPDX-License-Identifier: Apache-2.0
"""Agreement between processes; all of it is free when there is one.

The group is looked up at every use: a module may be built before the processes find each other.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of every process's tensor; all must call it with the same shape."""
    if distributed():
        tensor = tensor.contiguous()
        dist.all_reduce(tensor)
    return tensor


def of_first_process(tensor: Tensor) -> Tensor:
    """The first process's tensor, on every process."""
    if distributed():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor
