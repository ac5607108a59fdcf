# SPDX-License-Identifier: Apache-2.0
"""Several processes that train one model together, as ``torchrun`` starts them.

Each process works on its share of every batch and holds the same weights; the first one alone
validates, writes and reports. With one process nothing here does anything.
"""

from __future__ import annotations

import functools
import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastvq.training.progress import Report

T = TypeVar("T")
# how often this process has joined the others
_JOINED = itertools.count()


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Attributes:
        rank: its number, 0 for the first.
        count: how many there are.
        local: its number among those of its machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def reporting(self, report: Report) -> Report:
        """``report`` in the first process; in the others what takes lines and does nothing."""
        return report if self.first else _nowhere

    def share(self, positions: Tensor) -> Tensor:
        """This process's part of the positions of a batch.

        Raises:
            ValueError: the batch cannot be shared equally.
        """
        if len(positions) % self.count:
            raise ValueError(
                f"batch_size must be a multiple of the {self.count} processes, "
                f"got {len(positions)} examples a step"
            )
        return positions[self.rank :: self.count]

    def by_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in the first process, in every process; the others wait.

        What it raises in the first is raised in every one, so that none waits for those that ended.
        """
        if self.count == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.first:
            try:
                outcome[0] = work()
            except Exception as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        result, failure = outcome
        if failure is not None:
            raise failure
        return cast(T, result)

    def after_first(self, work: Callable[[], T]) -> T:
        """What ``work`` returns in each process, once the first has come as far."""
        if self.count > 1:
            dist.barrier()
        return work()

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The mean of every process's values."""
        if self.count == 1:
            return values
        gathered: list[dict[str, float]] = [{} for _ in range(self.count)]
        dist.all_gather_object(gathered, values)
        return {name: sum(each[name] for each in gathered) / self.count for name in values}

    def wrapped(self, module: nn.Module, device: torch.device) -> nn.Module:
        """``module`` whose gradients are averaged over the processes during ``backward``."""
        if self.count == 1:
            return module
        devices = [device] if device.type == "cuda" else None
        with warnings.catch_warnings():
            # torch 2.13 has another name for the argument, which torch 2.10 does not know
            warnings.filterwarnings("ignore", "`broadcast_buffers`", FutureWarning)
            # codebooks are kept alike by their own reductions: see fastvq.nn
            return nn.parallel.DistributedDataParallel(module, devices, broadcast_buffers=False)


def launched() -> Processes:
    """This process, as ``torchrun`` describes it in the environment."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if not all(name in os.environ for name in names):
        return Processes()
    return Processes(*(int(os.environ[name]) for name in names))


@functools.cache
def _store() -> Any:
    """Where the processes find one another, as ``torchrun`` describes it in the environment."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(iter(rendezvous("env://")))
    return store


def _nowhere(_: str) -> None:
    """The report of a process that has nothing to say."""


@contextmanager
def together(processes: Processes, device: torch.device) -> Iterator[None]:
    """Joins the processes inside, unless the caller has joined them already."""
    if processes.count == 1 or dist.is_initialized():
        yield
        return
    from torch.distributed.distributed_c10d import PrefixStore

    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo for what stays on the CPU, such as metrics
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    # names of its own each time: those of a group that was left would be found again in the store
    store = PrefixStore(f"fastvq-{next(_JOINED)}", _store())
    dist.init_process_group(backend, store=store, rank=processes.rank, world_size=processes.count)
    try:
        yield
    finally:
        dist.destroy_process_group()
