# SPDX-License-Identifier: Apache-2.0
"""The one training loop. What is trained is a `Task`; how long and how fast, a `TrainingConfig`."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastvq.training import checkpoints, records
from fastvq.training.batches import Batches, Order
from fastvq.training.processes import Processes
from fastvq.training.progress import Progress, Report, Window
from fastvq.training.records import MetricsLog
from fastvq.training.settings import TrainingConfig, learning_rate, seed_of


class Task(Protocol):
    """What one kind of model brings to the loop."""

    @property
    def module(self) -> nn.Module:
        """The model, on its device."""
        ...

    @property
    def config(self) -> Any:
        """Its config, a dataclass."""
        ...

    @property
    def examples(self) -> int:
        """Number of training examples."""
        ...

    @property
    def score(self) -> str:
        """Name of the validation metric to be minimised."""
        ...

    def batch(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The training examples at ``positions``, on the CPU; called from another thread."""
        ...

    def losses(self, *batch: Tensor) -> dict[str, Tensor]:
        """0-d tensors for a batch on the model's device; ``"loss"`` is minimised."""
        ...

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of ``module`` or its average, in eval mode, on the validation split."""
        ...


def fit(
    task: Task,
    config: TrainingConfig,
    run: Path,
    *,
    processes: Processes = Processes(),
    resume: bool = False,
    report: Report = print,
) -> checkpoints.State:
    """Trains until the steps are done or the validation score is stale.

    Continued with ``resume`` from its newest checkpoint, a run on the CPU ends with the same bits
    (weights, codebook, metrics) as if it had never stopped, given the same number of threads:
    the data and the random numbers of a step are functions of the seed, the step and the process.

    Args:
        task: the model and its data; each process has its own, with equal weights.
        config: see `TrainingConfig`.
        run: the folder that takes ``metrics.jsonl`` and ``checkpoints/``.
        processes: those that train together.
        resume: continue from the newest checkpoint, if there is one.
        report: takes a line at the end, and at each validation where there is no progress bar; of
            the first process only.

    Returns:
        Where the run stands at its end.

    Raises:
        FloatingPointError: the loss or the validation score is no longer finite; the last
            checkpoint stays.
    """
    parts = _parts(task, config)
    newest = checkpoints.latest(run) if resume else None
    state = checkpoints.State() if newest is None else checkpoints.load(newest, parts)
    stepper = _Stepper(task, parts, config, processes)
    window, started = Window(), time.monotonic() - state.seconds
    report = processes.reporting(report)
    first = processes.first
    log = MetricsLog(run, after=state.step, enabled=first, tensorboard=config.tensorboard)
    progress = Progress(config.steps, state.step, report, enabled=first)
    batches = Batches(task.batch, stepper.order, processes, config)
    with contextlib.closing(log), contextlib.closing(progress), contextlib.closing(batches):
        while state.step < config.steps and not _is_stale(state, config):
            window.add(stepper.step(state.step, batches.take(state.step)))
            state = replace(state, step=state.step + 1)
            progress.step()
            due = state.step % config.validate_every == 0 or state.step == config.steps
            if due or state.step % config.log_every == 0:
                # of all processes, so that all of them stop
                means = processes.mean(window.take())
                _check_finite("loss", means["loss"], state.step)
                log.write(state.step, "train", means)
            if due:
                metrics = processes.by_first(lambda: _validate(task, parts.model))
                _check_finite(f"validation {task.score}", metrics[task.score], state.step)
                log.write(state.step, "validation", metrics)
                state = _judged(state, metrics[task.score], time.monotonic() - started)
                progress.note(
                    f"validation {task.score} {metrics[task.score]:.5g}", best=state.stale == 0
                )
                save = partial(checkpoints.save, run, parts, task.config, state, keep=config.keep)
                processes.by_first(save)
    report(
        f"best validation {task.score} {state.best_score:.5g} at step {state.best_step} "
        f"of {state.step}, {state.seconds:.0f} s"
    )
    return state


def check(config: TrainingConfig, examples: int, processes: Processes) -> None:
    """Finds out before a run has begun what `fit` could not go on with.

    Raises:
        ValueError: a batch cannot be shared equally by the processes.
        ModuleNotFoundError: TensorBoard is asked for and absent.
    """
    processes.share(Order(examples, config.batch_size, config.seed).positions(0))
    if config.tensorboard:
        records.board_class()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch inside; outside, its random numbers go on as if nothing had happened."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class _Losses(nn.Module):
    """The losses of a task as the forward of a module, which is what can be shared out."""

    def __init__(self, task: Task, config: TrainingConfig, device: torch.device) -> None:
        super().__init__()
        self.module = task.module
        self._task, self._precision, self._type = task, config.precision, device.type

    def forward(self, *batch: Tensor) -> dict[str, Tensor]:
        enabled = self._precision == "bfloat16"
        with torch.autocast(self._type, torch.bfloat16, enabled=enabled):
            return self._task.losses(*batch)


class _Stepper:
    """Takes optimizer steps."""

    def __init__(
        self, task: Task, parts: checkpoints.Parts, config: TrainingConfig, processes: Processes
    ) -> None:
        self._parts, self._config, self._rank = parts, config, processes.rank
        self._device = next(task.module.parameters()).device
        self.order = Order(task.examples, config.batch_size, config.seed)
        if config.compile:
            task.module.compile()
        self._losses = processes.wrapped(_Losses(task, config, self._device), self._device)

    def step(self, step: int, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """One step on this process's share of its batch; returns the losses."""
        config, parts = self._config, self._parts
        torch.manual_seed(seed_of(config.seed, step, self._rank))
        for group in parts.optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        parts.trained.train()
        parts.optimizer.zero_grad(set_to_none=True)
        losses = self._backward(batch)
        if config.clip_norm:
            torch.nn.utils.clip_grad_norm_(parts.trained.parameters(), config.clip_norm)
        parts.optimizer.step()
        if parts.averaged is not None:
            _average(parts.averaged, parts.trained, config.averaging, step)
        return losses

    def _backward(self, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        """Adds the gradients of the batch, part by part; returns the means of the losses."""
        count = min(self._config.accumulate, len(batch[0]))
        chunks = zip(*(tensor.chunk(count) for tensor in batch), strict=True)
        total: dict[str, Tensor] = {}
        for chunk in chunks:
            # the last part may be smaller, and the loss is a mean over examples
            share = len(chunk[0]) / len(batch[0])
            moved = [tensor.to(self._device, non_blocking=True) for tensor in chunk]
            losses = self._losses(*moved)
            (losses["loss"] * share).backward()
            for name, loss in losses.items():
                part = loss.detach() * share
                total[name] = total[name] + part if name in total else part
        return total


def _parts(task: Task, config: TrainingConfig) -> checkpoints.Parts:
    parameters = list(task.module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, config.learning_rate, fused=True)
    averaged = copy.deepcopy(task.module) if config.averaging else None
    return checkpoints.Parts(task.module, averaged, optimizer)


@torch.no_grad()
def _average(averaged: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the weights, fast at first so that it forgets the start.

    Buffers are taken as they are: a codebook of moving averages is one already.
    """
    decay = min(decay, (step + 1) / (step + 10))
    for mean, now in zip(averaged.parameters(), trained.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
    for kept, buffer in zip(averaged.buffers(), trained.buffers(), strict=True):
        kept.copy_(buffer)


def _validate(task: Task, model: nn.Module) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        return task.validate(model)


def _judged(state: checkpoints.State, score: float, seconds: float) -> checkpoints.State:
    """The state after a validation."""
    if state.best_score is None or score < state.best_score:
        return replace(state, best_step=state.step, best_score=score, stale=0, seconds=seconds)
    return replace(state, stale=state.stale + 1, seconds=seconds)


def _is_stale(state: checkpoints.State, config: TrainingConfig) -> bool:
    return config.patience > 0 and state.stale >= config.patience


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"the {what} is {value} at step {step}: a lower learning_rate may help"
        )
