# SPDX-License-Identifier: Apache-2.0
"""Which examples each step takes, and reading them while the step before is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from fastvq.training.processes import Processes
from fastvq.training.settings import TrainingConfig, seed_of

Batch = tuple[Tensor, ...]
Read = Callable[[Tensor, torch.Generator], Batch]
# so that the random numbers of reading are others than those of the step
_READING = 1


class Order:
    """Which examples each step takes: a function of (seed, step), so nothing of it is saved."""

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self.examples, self.seed = examples, seed
        self.batch_size = min(batch_size, examples)
        self._epoch, self._shuffled = -1, torch.empty(0, dtype=torch.int64)

    def positions(self, step: int) -> Tensor:
        """int64 ``[batch_size]``; what an epoch has left over after its last whole batch rests."""
        epoch, batch = divmod(step, self.examples // self.batch_size)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch = epoch
            self._shuffled = torch.randperm(self.examples, generator=generator)
        return self._shuffled[batch * self.batch_size : (batch + 1) * self.batch_size]


class Batches:
    """Reads this process's share of the batch of each step, one step ahead, in a thread.

    Args:
        read: positions and a generator -> the batch, on the CPU.
        order: which examples a step takes.
        processes: those that share a batch.
        config: gives the seed, and the last step.
    """

    def __init__(
        self, read: Read, order: Order, processes: Processes, config: TrainingConfig
    ) -> None:
        self._read, self._order, self._processes, self._config = read, order, processes, config
        self._pool = ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None

    def take(self, step: int) -> Batch:
        """The batch of a step, while that of the next is begun."""
        ahead = self._next if self._next is not None and self._next[0] == step else None
        current = ahead[1] if ahead is not None else self._pool.submit(self._batch, step)
        batch = current.result()
        if step + 1 < self._config.steps:
            self._next = step + 1, self._pool.submit(self._batch, step + 1)
        return batch

    def _batch(self, step: int) -> Batch:
        seed = seed_of(self._config.seed, step, self._processes.rank, _READING)
        positions = self._processes.share(self._order.positions(step))
        batch = self._read(positions, torch.Generator().manual_seed(seed))
        return tuple(t.pin_memory() for t in batch) if torch.cuda.is_available() else batch

    def close(self) -> None:
        """Leaves off; what was read ahead is dropped."""
        self._pool.shutdown(cancel_futures=True)
