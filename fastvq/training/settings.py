# SPDX-License-Identifier: Apache-2.0
"""How long, how fast and in what arithmetic a model is trained."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch

from fastvq import _checks

SCHEDULES = ("cosine", "linear", "constant")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained: AdamW, a warm-up, and a schedule.

    Attributes:
        steps: optimizer steps at most.
        batch_size: examples a step, drawn without replacement within an epoch; with several
            processes, of all of them together.
        accumulate: parts that a batch is worked on in, one after another, to save memory. Their
            gradients are averaged; a codebook of moving averages moves once a part.
        learning_rate: at the peak, after the warm-up.
        warmup_steps: steps over which it rises linearly.
        schedule: how it falls afterwards: ``"cosine"`` or ``"linear"`` to zero at the last step, or
            ``"constant"``.
        weight_decay: decoupled, of matrices and kernels; biases are left alone.
        clip_norm: gradients longer than this are shortened to it; 0 for never.
        averaging: decay of a running average of the weights, which is then what is validated and
            kept; 0 keeps the weights themselves.
        precision: ``"float32"``, or ``"bfloat16"`` for automatic mixed precision: matrix products
            and convolutions in bfloat16, weights and what needs the range in float32.
        compile: run the model through ``torch.compile``.
        log_every: steps between two lines of training metrics, each the mean since the last.
        validate_every: steps between two validations, each with a checkpoint.
        patience: validations without a better score before the run stops; 0 for never.
        keep: checkpoints kept beside the best.
        tensorboard: write the metrics for TensorBoard too, into ``tensorboard/`` of the run.
        seed: of the start, the order of the data and all else that is random; below 2**32.
        device: ``"auto"`` (CUDA where there is one), or a name that torch knows.
    """

    steps: int = 2000
    batch_size: int = 128
    accumulate: int = 1
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    averaging: float = 0.0
    precision: str = "float32"
    compile: bool = False
    log_every: int = 50
    validate_every: int = 100
    patience: int = 0
    keep: int = 2
    tensorboard: bool = False
    seed: int = 0
    device: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate", "log_every", "validate_every", "keep"):
            _checks.positive(name, getattr(self, name))
        for name in ("warmup_steps", "weight_decay", "clip_norm", "patience", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        _checks.fraction("averaging", self.averaging)
        _checks.one_of("schedule", self.schedule, SCHEDULES)
        _checks.one_of("precision", self.precision, PRECISIONS)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The learning rate of a step: a linear rise, then the schedule."""
    rise = min(1.0, (step + 1) / (config.warmup_steps + 1))
    done = step / config.steps
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}
    return config.learning_rate * rise * fall[config.schedule]


def seed_of(seed: int, *parts: int) -> int:
    """A seed for one purpose (a step, a process): unrelated for unrelated arguments."""
    text = " ".join(map(str, (seed, *parts))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def resolve_device(name: str, local_process: int = 0) -> torch.device:
    """``"auto"`` is CUDA where there is one, else the CPU; ``"cuda"`` is this process's own.

    Args:
        name: see above, or a name that torch knows.
        local_process: the number of this process among those of this machine.

    Raises:
        ValueError: torch does not know the name, or has no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_process)
        torch.empty(0, device=device)
    # torch raises several kinds here, an AssertionError among them when it was built without CUDA
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here: {reason}") from error
    return device
