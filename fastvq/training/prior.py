# SPDX-License-Identifier: Apache-2.0
"""Training and measuring a prior over the codes of a VQ-VAE."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvq import _pretrained
from fastvq.priors import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    bits_per_code,
    entropy_bits,
    per_position_bits,
)
from fastvq.training import checkpoints, engine, runs
from fastvq.training.codes import Codes
from fastvq.training.processes import launched, together
from fastvq.training.progress import Report
from fastvq.training.settings import TrainingConfig, resolve_device

CODES_NAME = "codes.npz"


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


class PriorScore(NamedTuple):
    """What a prior pays for held-out codes, beside what it must beat on the same codes.

    Attributes:
        prior_bits_per_code: mean of -log2 p.
        per_position_bits_per_code: entropy of the histogram of each position, their mean.
        order0_bits_per_code: entropy of the histogram of all codes.
        prior_bits_per_image: ``prior_bits_per_code`` times the codes of an image.
    """

    prior_bits_per_code: float
    per_position_bits_per_code: float
    order0_bits_per_code: float
    prior_bits_per_image: float


class TrainedPrior(NamedTuple):
    """A prior with what is needed to sample images from it.

    Attributes:
        prior: in eval mode.
        grid: height and width of the grids it was trained on.
        image_size: height and width of the images in pixels, without padding.
        classes: names of the classes, empty for an unconditional prior.
        fingerprint: of the VQ-VAE whose codes it knows.
    """

    prior: GatedPixelCNN
    grid: tuple[int, int]
    image_size: tuple[int, int]
    classes: tuple[str, ...]
    fingerprint: str


def train_prior(
    codes: Codes,
    model: GatedPixelCNNConfig,
    training: PriorTraining,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Report = print,
) -> TrainedPrior:
    """Trains a prior on codes and returns the one with the best validation likelihood.

    Args:
        codes: of all three splits.
        model: the prior; ``codebook_size`` must be that of the codes, ``num_classes`` that of the
            codes, or ``None`` for an unconditional prior.
        training: how it is trained.
        out: folder of the run; takes a copy of the codes beside ``run.json``, ``metrics.jsonl``
            and ``checkpoints/``.
        resume: continue the run in ``out``; its settings and codes must be these.
        report: takes lines about progress.

    Raises:
        FileExistsError: there is a run in ``out`` and ``resume`` is false.
        ValueError: the prior does not fit the codes, or a resumed run has others. Raised before
            anything is written.
    """
    processes = launched()
    device = resolve_device(training.device, processes.local)
    _check(codes, model)
    run = Path(out)
    if resume and (run / CODES_NAME).exists():
        _check_same(codes, Codes.load(run / CODES_NAME))
    settings = {"model": model, "training": training}
    with together(processes, device), engine.seeded(training.seed, device):
        processes.by_first(lambda: runs.create(run, settings, resume=resume))
        processes.by_first(lambda: codes.save(run / CODES_NAME))
        task = _Task(GatedPixelCNN(model).to(device), codes)
        engine.fit(task, training, run, processes=processes, resume=resume, report=report)
        processes.by_first(lambda: None)
        return load_prior(run)


def resume_prior(run: str | os.PathLike[str], *, report: Report = print) -> TrainedPrior:
    """Continues the run in a folder with the codes and settings it was started with.

    Raises:
        FileNotFoundError: there is no run in the folder.
    """
    folder = Path(run)
    return train_prior(
        Codes.load(folder / CODES_NAME),
        runs.setting(folder, "model", GatedPixelCNNConfig),
        runs.setting(folder, "training", PriorTraining),
        folder,
        resume=True,
        report=report,
    )


def load_prior(run: str | os.PathLike[str]) -> TrainedPrior:
    """The best prior of a run, on the CPU in eval mode.

    Raises:
        FileNotFoundError, ValueError: no run, no checkpoint yet, or a damaged file.
    """
    folder = checkpoints.best(Path(run))
    config = _pretrained.load_config(folder, GatedPixelCNN.__name__, GatedPixelCNNConfig)
    prior = GatedPixelCNN(config)
    _pretrained.load_weights(folder, prior)
    codes = Codes.load(Path(run) / CODES_NAME)
    classes = codes.classes if config.num_classes is not None else ()
    return TrainedPrior(prior.eval(), codes.grid, codes.image_size, classes, codes.fingerprint)


def evaluate_prior(prior: GatedPixelCNN, codes: Tensor, labels: Tensor) -> PriorScore:
    """Measures a prior, in eval mode, on codes it was not trained on.

    Args:
        prior: on any device.
        codes: int64 ``[N, h, w]``.
        labels: int64 ``[N]``; an unconditional prior does not look at them.
    """
    device, size = next(prior.parameters()).device, prior.config.codebook_size
    known = _labels(prior, labels.to(device))
    bits = bits_per_code(prior, codes.to(device), known)
    return PriorScore(
        bits,
        per_position_bits(codes, size),
        entropy_bits(codes, size),
        bits * codes[0].numel(),
    )


def _labels(prior: GatedPixelCNN, labels: Tensor) -> Tensor | None:
    return None if prior.config.num_classes is None else labels


def _check(codes: Codes, model: GatedPixelCNNConfig) -> None:
    if model.codebook_size != codes.codebook_size:
        raise ValueError(
            f"codebook_size must be {codes.codebook_size}, that of the codes, "
            f"got {model.codebook_size}"
        )
    if model.num_classes is not None and model.num_classes != codes.num_classes:
        raise ValueError(
            f"num_classes must be {codes.num_classes}, that of the codes, or None, "
            f"got {model.num_classes}"
        )
    for split in ("train", "validation"):
        if len(codes.part(split)[0]) == 0:
            raise ValueError(f"codes must hold a {split} split, got none of its images")


def _check_same(codes: Codes, before: Codes) -> None:
    same = codes.fingerprint == before.fingerprint and torch.equal(codes.codes, before.codes)
    if not same:
        raise ValueError("codes must be those that the run was started with, got others")


class _Task:
    """A prior and its codes, for the loop."""

    score = "bits_per_code"

    def __init__(self, module: GatedPixelCNN, codes: Codes) -> None:
        self.module, self.config = module, module.config
        self._codes, self._labels = codes.part("train")
        self._validation = codes.part("validation")
        self.examples = len(self._codes)

    def batch(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self._codes[positions], self._labels[positions]

    def losses(self, *batch: Tensor) -> dict[str, Tensor]:
        codes, labels = batch
        nats = self.module.nll(codes, _labels(self.module, labels)).mean()
        return {"loss": nats, "bits_per_code": nats / math.log(2)}

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, GatedPixelCNN)
        score = evaluate_prior(module, *self._validation)
        return {"bits_per_code": score.prior_bits_per_code}
