# SPDX-License-Identifier: Apache-2.0
"""The one training loop. What is trained is a `Task`; how long and how fast, a `TrainingConfig`."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastvq import _checks
from fastvq.training import checkpoints
from fastvq.training.records import MetricsLog

Report = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: AdamW under a cosine schedule.

    Attributes:
        steps: optimizer steps at most.
        batch_size: examples a step, drawn without replacement within an epoch.
        learning_rate: at the peak, after the warm-up; it then falls to zero along a cosine.
        warmup_steps: steps over which it rises linearly.
        weight_decay: decoupled, of every parameter.
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
    log_every: int = 50
    validate_every: int = 100
    patience: int = 0
    keep: int = 2
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "validate_every", "keep"):
            _checks.positive(name, getattr(self, name))
        for name in ("warmup_steps", "weight_decay", "patience", "seed"):
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

    def validate(self) -> dict[str, float]:
        """Metrics of the model, in eval mode, on the validation split."""
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
    optimizer = torch.optim.AdamW(
        task.module.parameters(),
        config.learning_rate,
        weight_decay=config.weight_decay,
        fused=True,
    )
    newest = checkpoints.latest(run) if resume else None
    state = checkpoints.State()
    if newest is not None:
        state = checkpoints.load(newest, task.module, optimizer)
    log = MetricsLog(run, after=state.step)
    order = _Order(task.examples, config.batch_size, config.seed)
    window = _Window()
    started = time.monotonic() - state.seconds
    progress = _Progress(config.steps, state.step, report)
    while state.step < config.steps and not _is_stale(state, config):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, state.step)
        task.module.train()
        losses = task.losses(order.positions(state.step))
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        window.add(losses)
        state = replace(state, step=state.step + 1)
        progress.step()
        due = state.step % config.validate_every == 0 or state.step == config.steps
        if due or state.step % config.log_every == 0:
            log.write(state.step, "train", window.take(state.step))
        if due:
            metrics = _validate(task)
            log.write(state.step, "validation", metrics)
            state = _judged(state, metrics[task.score], time.monotonic() - started)
            progress.note(state, metrics, task.score)
            checkpoints.save(run, task.module, task.config, optimizer, state, keep=config.keep)
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


class _Window:
    """Means of the losses since the last line; nothing waits for the device until it is taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        for name, loss in losses.items():
            value = loss.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def take(self, step: int) -> dict[str, float]:
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        if not math.isfinite(means["loss"]):
            raise FloatingPointError(
                f"the loss is {means['loss']} at step {step}: a lower learning_rate may help"
            )
        return means


class _Progress:
    """A bar on a terminal, a line at each validation elsewhere."""

    def __init__(self, total: int, done: int, report: Report) -> None:
        from tqdm import tqdm

        self._total, self._report = total, report
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit="step", disable=not self._terminal)

    def step(self) -> None:
        self._bar.update()

    def note(self, state: checkpoints.State, metrics: dict[str, float], score: str) -> None:
        if self._terminal:
            self._bar.set_postfix({score: f"{metrics[score]:.5g}", "best": state.best_step})
        else:
            best = " (best)" if state.stale == 0 else ""
            self._report(
                f"step {state.step}/{self._total}: validation {score} {metrics[score]:.5g}{best}"
            )

    def close(self) -> None:
        self._bar.close()


def _validate(task: Task) -> dict[str, float]:
    task.module.eval()
    with torch.no_grad():
        return task.validate()


def _judged(state: checkpoints.State, score: float, seconds: float) -> checkpoints.State:
    """The state after a validation."""
    if state.best_score is None or score < state.best_score:
        return replace(state, best_step=state.step, best_score=score, stale=0, seconds=seconds)
    return replace(state, stale=state.stale + 1, seconds=seconds)


def _is_stale(state: checkpoints.State, config: TrainingConfig) -> bool:
    return config.patience > 0 and state.stale >= config.patience
