# SPDX-License-Identifier: Apache-2.0
"""Training and measuring a prior over the codes of one level of a VQ-VAE."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastvq import _config, priors
from fastvq.priors import LevelContextConfig, LevelPriorConfig, Prior, PriorConfig, bits_per_code
from fastvq.priors.kinds import prior_class
from fastvq.training import checkpoints, engine, runs
from fastvq.training.codes import Codes
from fastvq.training.processes import launched, together
from fastvq.training.progress import Report
from fastvq.training.settings import TrainingConfig, resolve_device

CODES_NAME = "codes.npz"
# the prior of a level by the number of axes of its grid
_BY_AXES = {1: "wavenet", 2: "gated_pixelcnn", 3: "video_pixelcnn"}
_CONTEXT_CHANNELS = 64


@dataclass(frozen=True, kw_only=True)
class PriorTraining(TrainingConfig):
    """How a prior is trained: a `TrainingConfig` that stops when validation no longer improves."""

    steps: int = 500
    learning_rate: float = 4e-3
    weight_decay: float = 0.2
    clip_norm: float = 1.0
    validate_every: int = 50
    patience: int = 4
    averaging: float = 0.995


class TrainedPrior(NamedTuple):
    """A prior with what is needed to sample data from it.

    Attributes:
        prior: in eval mode.
        level: of the model's codes that it is the prior of, 0 the top.
        shape: of the grids it was trained on, the codes of a position on the last axis.
        kind: of the data, see `fastvq.data.ExampleSet`.
        size: of the data along its axes, without padding.
        rate: samples or frames per second, ``None`` where that is unknown.
        classes: names of the classes, empty for an unconditional prior.
        fingerprint: of the VQ-VAE whose codes it knows.
    """

    prior: Prior
    level: int
    shape: tuple[int, ...]
    kind: str
    size: tuple[int, ...]
    rate: float | None
    classes: tuple[str, ...]
    fingerprint: str

    @property
    def positions(self) -> int:
        """Codes of one grid."""
        return math.prod(self.shape)


def prior_config_for(
    codes: Codes,
    level: int,
    kind: str | None = None,
    values: Mapping[str, Any] | None = None,
    above: Mapping[str, Any] | None = None,
) -> PriorConfig | LevelPriorConfig:
    """The config of a prior over the codes of a level: what they decide, then what is given.

    Args:
        codes: decide the codebook sizes, the classes and the levels above.
        level: 0 the top.
        kind: one of `fastvq.priors.KINDS`, by default by the axes of the grid.
        values: fields of its config.
        above: fields of the `LevelContextConfig` of a lower level.

    Raises:
        ValueError, TypeError: no such level, an unknown kind or field, or a value that a config
            refuses.
    """
    axes = codes.level(level).ndim - 1
    decided: dict[str, Any] = {
        "codebook_size": codes.codebook_sizes[level],
        "num_classes": codes.num_classes,
    }
    if level > 0:
        decided["context_channels"] = _CONTEXT_CHANNELS
    elif above:
        raise ValueError(f"above must not be set for the top level, got {', '.join(above)}")
    prior = priors.config_for(kind or default_kind(codes), decided | dict(values or {}))
    if level == 0:
        return prior
    seen = {"codebook_sizes": codes.codebook_sizes[:level], "grid_dims": axes}
    context = _config.from_dict(LevelContextConfig, seen | dict(above or {}), where="above")
    return LevelPriorConfig(prior, context)


def default_kind(codes: Codes) -> str:
    """The kind of prior that suits codes, by the number of axes of their grids."""
    return _BY_AXES[codes.level(0).ndim - 1]


def train_prior(
    codes: Codes,
    model: PriorConfig | LevelPriorConfig,
    training: PriorTraining,
    out: str | os.PathLike[str],
    *,
    level: int = 0,
    resume: bool = False,
    report: Report = print,
) -> TrainedPrior:
    """Trains a prior on the codes of a level and returns the one with the best validation score.

    Args:
        codes: of all three splits.
        model: the prior, that of a level below the top a `LevelPriorConfig` with all levels above;
            the codebook size of each must be that of the codes, ``num_classes`` that of the codes,
            or ``None`` for an unconditional prior.
        training: how it is trained.
        out: folder of the run; takes a copy of the codes beside ``run.json``, ``metrics.jsonl``
            and ``checkpoints/``.
        level: which codes, 0 the top.
        resume: continue the run in ``out``; its settings and codes must be these.
        report: takes lines about progress.

    Raises:
        FileExistsError: there is a run in ``out`` and ``resume`` is false.
        ValueError: the prior does not fit the codes, or a resumed run has others. Raised before
            anything is written.
    """
    processes = launched()
    device = resolve_device(training.device, processes.local)
    report = processes.reporting(report)
    _check(codes, model, level)
    engine.check(training, len(codes.part("train")), processes)
    run = Path(out)
    setting = model if isinstance(model, LevelPriorConfig) else _Top(model)
    settings = {"level": _Level(level), "model": setting, "training": training}
    with together(processes, device), engine.seeded(training.seed, device):
        processes.by_first(lambda: _begin(run, settings, codes, resume=resume))
        task = _Task(priors.make(model).to(device), codes, level)
        engine.fit(task, training, run, processes=processes, resume=resume, report=report)
        # the first process has written all that the others read
        return processes.after_first(lambda: load_prior(run))


def resume_prior(run: str | os.PathLike[str], *, report: Report = print) -> TrainedPrior:
    """Continues the run in a folder with the codes and settings it was started with.

    Raises:
        FileNotFoundError: there is no run in the folder.
    """
    folder = Path(run)
    level = runs.setting(folder, "level", _Level).number
    return train_prior(
        Codes.load(folder / CODES_NAME),
        _model(folder, level),
        runs.setting(folder, "training", PriorTraining),
        folder,
        level=level,
        resume=True,
        report=report,
    )


def load_prior(run: str | os.PathLike[str]) -> TrainedPrior:
    """The best prior of a run, on the CPU in eval mode.

    Raises:
        FileNotFoundError, ValueError: no run, no checkpoint yet, or a damaged file.
    """
    prior = priors.load(checkpoints.best(Path(run)))
    level = runs.setting(Path(run), "level", _Level).number
    codes = Codes.load(Path(run) / CODES_NAME)
    return TrainedPrior(
        prior,
        level,
        tuple(codes.level(level).shape[1:]),
        codes.kind,
        codes.size,
        codes.rate,
        codes.classes if prior.config.num_classes is not None else (),
        codes.fingerprint,
    )


def prior_bits(prior: Prior, level: int, codes: tuple[Tensor, ...], labels: Tensor) -> float:
    """Bits per code that a prior, in eval mode, pays for codes it was not trained on.

    Args:
        prior: on any device.
        level: whose prior it is.
        codes: int64 ``[N, *shape]`` of each level, the top first, as `Codes.level` gives them.
        labels: int64 ``[N]``; an unconditional prior does not look at them.
    """
    device = next(prior.parameters()).device
    moved = tuple(grid.to(device) for grid in codes[: level + 1])
    known = None if prior.config.num_classes is None else labels.to(device)
    return bits_per_code(prior, moved[level], known, context=moved[:level] or None)


@dataclass(frozen=True)
class _Level:
    """Which level of the codes a run is about."""

    number: int


@dataclass(frozen=True)
class _Top:
    """The prior of the top level as a setting: the class of its config is part of it."""

    prior: PriorConfig


def _model(run: Path, level: int) -> PriorConfig | LevelPriorConfig:
    if level == 0:
        return runs.setting(run, "model", _Top).prior
    return runs.setting(run, "model", LevelPriorConfig)


def _begin(run: Path, settings: Mapping[str, Any], codes: Codes, *, resume: bool) -> None:
    """Makes the folder of a run: the codes first, so that one with settings is whole."""
    runs.check(run, settings, resume=resume)
    if not (run / runs.RUN_NAME).exists():
        codes.save(run / CODES_NAME)
    elif not codes.is_same(Codes.load(run / CODES_NAME)):
        raise ValueError("codes must be those that the run was started with, got others")
    runs.create(run, settings, resume=resume)


def _check(codes: Codes, model: PriorConfig | LevelPriorConfig, level: int) -> None:
    sizes = model.above.codebook_sizes if isinstance(model, LevelPriorConfig) else ()
    if len(sizes) != level:
        raise ValueError(
            f"the prior of level {level} must be given the {level} levels above, got {len(sizes)}"
        )
    inner = model.prior if isinstance(model, LevelPriorConfig) else model
    kind, axes = prior_class(inner), codes.level(level).ndim - 1
    if kind.grid_dims not in (None, axes):
        raise ValueError(
            f"the prior of grids with {axes} axes must be for such grids, got {kind.__name__}, "
            f"which is for {kind.grid_dims}"
        )
    for each, size in enumerate((*sizes, model.codebook_size)):
        if size != codes.codebook_sizes[each]:
            raise ValueError(
                f"codebook_size of level {each} must be {codes.codebook_sizes[each]}, that of the "
                f"codes, got {size}"
            )
    if model.num_classes is not None and model.num_classes != codes.num_classes:
        raise ValueError(
            f"num_classes must be {codes.num_classes}, that of the codes, or None, "
            f"got {model.num_classes}"
        )
    for split in ("train", "validation"):
        if len(codes.part(split)) == 0:
            raise ValueError(f"codes must hold a {split} split, got none of its examples")


class _Task:
    """A prior and its codes, for the loop."""

    score = "bits_per_code"

    def __init__(self, module: Prior, codes: Codes, level: int) -> None:
        self.module, self.config = module, module.config
        self._grids = tuple(codes.level(each) for each in range(level + 1))
        self._labels, self._level = codes.labels, level
        self._train, self._validation = codes.part("train"), codes.part("validation")
        self.examples = len(self._train)

    def batch(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        rows = self._train[positions]
        return self._labels[rows], *(grid[rows] for grid in self._grids)

    def losses(self, *batch: Tensor) -> dict[str, Tensor]:
        labels, *above, codes = batch
        known = None if self.config.num_classes is None else labels
        nats = self.module.nll(codes, known, tuple(above) or None).mean()
        return {"loss": nats, "bits_per_code": nats / math.log(2)}

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Prior)
        rows = self._validation
        grids = tuple(grid[rows] for grid in self._grids)
        return {"bits_per_code": prior_bits(module, self._level, grids, self._labels[rows])}
