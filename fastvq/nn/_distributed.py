# SPDX-License-Identifier: Apache-2.0
"""Agreement between processes; all of it is free when there is one.

The group is looked up at every use: a module may be built before the processes find each other.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(counts: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Every process's counts ``[H, K]`` and sums ``[H, K, D]`` added up, in one reduction."""
    if not distributed():
        return counts, sums
    packed = torch.cat([counts.unsqueeze(-1), sums], dim=-1)
    dist.all_reduce(packed)
    return packed[..., 0], packed[..., 1:]


def joint_mean(mean: Tensor, count: Tensor) -> Tensor:
    """The mean ``[..., K]`` of ``count`` vectors ``[...]`` here, valued as that of all processes.

    Its gradient is that of the joint batch where gradients are averaged over processes, as
    DistributedDataParallel does, and these count alike.
    """
    if not distributed():
        return mean
    count = count.to(mean.dtype).unsqueeze(-1)
    counts, sums = sum_over_processes(count, (count * mean.detach()).unsqueeze(-2))
    return mean + (sums.squeeze(-2) / counts.clamp_min(1) - mean.detach())


def of_first_process(tensor: Tensor) -> Tensor:
    """The first process's tensor, on every process."""
    if distributed():
        tensor = tensor.contiguous()
        dist.broadcast(tensor, src=0)
    return tensor
