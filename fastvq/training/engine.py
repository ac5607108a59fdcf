# SPDX-License-Identifier: Apache-2.0
"""The one training loop. What is trained is a `Task`; how long and how fast, a `TrainingConfig`."""

from __future__ import annotations

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastvq import _checks
from fastvq.training import checkpoints
from fastvq.training.progress import Progress, Report, Window
from fastvq.training.records import MetricsLog


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: AdamW under a cosine schedule.

    Attributes:
        steps: optimizer steps at most.
        batch_size: examples a step, drawn without replacement within an epoch.
        learning_rate: at the peak, after the warm-up; it then falls to zero along a cosine.
        warmup_steps: steps over which it rises linearly.
        weight_decay: decoupled, of matrices and kernels; biases are left alone.
        clip_norm: gradients longer than this are shortened to it; 0 for never.
        log_every: steps between two lines of training metrics, each the mean since the last.
        validate_every: steps between two validations, each with a checkpoint.
        patience: validations without a better score before the run stops; 0 for never.
        keep: checkpoints kept beside the best.
        seed: of the start, the order of the data and all else that is random.
        device: ``"auto"`` (CUDA where there is one), or a name that torch knows.
    """

    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    log_every: int = 50
    validate_every: int = 100
    patience: int = 0
    keep: int = 2
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "validate_every", "keep"):
            _checks.positive(name, getattr(self, name))
        for name in ("warmup_steps", "weight_decay", "clip_norm", "patience", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


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

    def losses(self, positions: Tensor) -> dict[str, Tensor]:
        """0-d tensors for the training examples at ``positions``; ``"loss"`` is minimised."""
        ...

    @property
    def averaging(self) -> float:
        """Decay of the running average of the weights that is validated and kept; 0 for none."""
        ...

    def validate(self, module: nn.Module) -> dict[str, float]:
        """Metrics of ``module`` or its average, in eval mode, on the validation split."""
        ...


def fit(
    task: Task,
    config: TrainingConfig,
    run: Path,
    *,
    resume: bool = False,
    report: Report = print,
) -> checkpoints.State:
    """Trains until the steps are done or the validation score is stale.

    Continued with ``resume`` from its newest checkpoint, a run on the CPU ends with the same bits
    (weights, codebook, metrics) as if it had never stopped, given the same number of threads. The
    caller seeds torch: see `seeded`.

    Args:
        task: the model and its data.
        config: see `TrainingConfig`.
        run: the folder that takes ``metrics.jsonl`` and ``checkpoints/``.
        resume: continue from the newest checkpoint, if there is one.
        report: takes a line at the end, and at each validation where there is no progress bar.

    Returns:
        Where the run stands at its end.

    Raises:
        FloatingPointError: the loss is no longer finite; the last checkpoint stays.
    """
    parts = _parts(task, config)
    newest = checkpoints.latest(run) if resume else None
    state = checkpoints.State() if newest is None else checkpoints.load(newest, parts)
    log = MetricsLog(run, after=state.step)
    order = _Order(task.examples, config.batch_size, config.seed)
    window = Window()
    started = time.monotonic() - state.seconds
    progress = Progress(config.steps, state.step, report)
    while state.step < config.steps and not _is_stale(state, config):
        window.add(_step(task, parts, config, order, state.step))
        state = replace(state, step=state.step + 1)
        progress.step()
        due = state.step % config.validate_every == 0 or state.step == config.steps
        if due or state.step % config.log_every == 0:
            log.write(state.step, "train", window.take(state.step))
        if due:
            metrics = _validate(task, parts.model)
            log.write(state.step, "validation", metrics)
            state = _judged(state, metrics[task.score], time.monotonic() - started)
            progress.note(
                f"validation {task.score} {metrics[task.score]:.5g}", best=state.stale == 0
            )
            checkpoints.save(run, parts, task.config, state, keep=config.keep)
    progress.close()
    report(
        f"best validation {task.score} {state.best_score:.5g} at step {state.best_step} "
        f"of {state.step}, {state.seconds:.0f} s"
    )
    return state


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step: a linear rise, then a half cosine to zero at ``steps``."""
    rise = min(1.0, (step + 1) / (config.warmup_steps + 1))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch inside; outside, its random numbers go on as if nothing had happened."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def resolve_device(name: str) -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU.

    Raises:
        ValueError: torch does not know the name, or has no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    # torch raises several kinds here, an AssertionError among them when it was built without CUDA
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from error
    return device


class _Order:
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


def _parts(task: Task, config: TrainingConfig) -> checkpoints.Parts:
    parameters = list(task.module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, config.learning_rate, fused=True)
    averaged = copy.deepcopy(task.module) if task.averaging else None
    return checkpoints.Parts(task.module, averaged, optimizer)


def _step(
    task: Task, parts: checkpoints.Parts, config: TrainingConfig, order: _Order, step: int
) -> dict[str, Tensor]:
    """One optimizer step; returns its losses."""
    for group in parts.optimizer.param_groups:
        group["lr"] = learning_rate(config, step)
    parts.trained.train()
    losses = task.losses(order.positions(step))
    parts.optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    if config.clip_norm:
        torch.nn.utils.clip_grad_norm_(parts.trained.parameters(), config.clip_norm)
    parts.optimizer.step()
    if parts.averaged is not None:
        _average(parts.averaged, parts.trained, task.averaging, step)
    return losses


@torch.no_grad()
def _average(averaged: nn.Module, trained: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the weights, fast at first so that it forgets the start."""
    decay = min(decay, (step + 1) / (step + 10))
    for mean, now in zip(averaged.parameters(), trained.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)


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
