# SPDX-License-Identifier: Apache-2.0
"""Training a VQ-VAE of any kind on images, signals or video."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastvq import data as datasets
from fastvq.data import DataConfig, ExampleSet, Splits
from fastvq.models import AutoEncoder, Coder, WaveNetVQVAE
from fastvq.models.likelihoods import Discrete
from fastvq.training import checkpoints, engine, metrics, runs
from fastvq.training.jitter import Jitter, jittered
from fastvq.training.kinds import ModelConfig, load_pretrained, make_model
from fastvq.training.processes import launched, together
from fastvq.training.progress import Report
from fastvq.training.settings import TrainingConfig, resolve_device

# the sign of a collapsed codebook: training goes on, but somebody should know
_COLLAPSED_PERPLEXITY = 1.5
_COLLAPSED_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class ModelTraining(TrainingConfig, Jitter):
    """How a VQ-VAE is trained: a `TrainingConfig`, and the `Jitter` of half the images."""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        Jitter.__post_init__(self)


def train_model(
    data: DataConfig,
    model: ModelConfig | Callable[[ExampleSet], ModelConfig],
    training: ModelTraining,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Report = print,
) -> Coder:
    """Trains a VQ-VAE and returns the one with the best validation score.

    The score is the squared error, or for a discrete likelihood the bits per value with nominal
    bits for the codes. Under ``torchrun`` the processes train one model together.

    Args:
        data: what it is trained on.
        model: the model, of the class that its config belongs to, which must fit the data; or a
            function that gives it for the training split.
        training: how it is trained.
        out: folder of the run: ``run.json``, ``metrics.jsonl``, ``checkpoints/``.
        resume: continue the run in ``out``; its settings must be these.
        report: takes lines about progress.

    Returns:
        The model of the best checkpoint, on the CPU, in eval mode.

    Raises:
        FileExistsError: there is a run in ``out`` and ``resume`` is false.
        FileNotFoundError, ValueError: the data cannot be read or does not fit the model. Raised
            before anything is written.

    Example::

        model = train_model(DataConfig(), VQVAEConfig(), ModelTraining(steps=500), "runs/digits")
    """
    processes = launched()
    report = processes.reporting(report)
    device = resolve_device(training.device, processes.local)
    splits = datasets.load(data, report=report)
    if not isinstance(model, ModelConfig):
        model = model(splits.train)
    runs.check_fit(model, splits.train)
    splits = datasets.padded(splits, model.stride, report=report)
    if training.moves and splits.train.kind != "image":
        raise ValueError(f"rotate, zoom and shift must be 0 for {splits.train.kind}")
    for split in ("train", "validation"):
        splits.part(split)
    engine.check(training, len(splits.train), processes)
    run = Path(out)
    settings = runs.model_settings(data, model, training)
    with together(processes, device), engine.seeded(training.seed, device):
        processes.by_first(lambda: runs.create(run, settings, resume=resume))
        task = _Task(make_model(model).to(device), splits, training, report)
        engine.fit(task, training, run, processes=processes, resume=resume, report=report)
        # the first process has written all that the others read
        return processes.after_first(lambda: load_pretrained(checkpoints.best(run)))


def resume_model(run: str | os.PathLike[str], *, report: Report = print) -> Coder:
    """Continues the run in a folder with the settings it was started with.

    Raises:
        FileNotFoundError: there is no run in the folder.
    """
    folder = Path(run)
    return train_model(
        runs.setting(folder, "data", DataConfig),
        runs.model_config(folder),
        runs.setting(folder, "training", ModelTraining),
        folder,
        resume=True,
        report=report,
    )


class _Task:
    """A VQ-VAE and its data, for the loop."""

    def __init__(self, module: Coder, splits: Splits, jitter: Jitter, report: Report) -> None:
        self.module, self.config = module, module.config
        self.examples = len(splits.train)
        squared = isinstance(module, AutoEncoder) and not isinstance(module.likelihood, Discrete)
        self.score = "mse" if squared else "bits_per_dim"
        self._train, self._validation = splits.train, splits.validation
        # a moved image is brought back to the levels that a discrete likelihood knows
        self._peak = None if squared else splits.train.peak
        self._jitter, self._report = jitter, report

    def batch(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        examples = self._train.batch(positions)
        if self._jitter.moves:
            # the other half keeps the model at home in images as they are
            half = len(examples) // 2
            moved = jittered(examples[:half], self._jitter, generator, peak=self._peak)
            examples = torch.cat([moved, examples[half:]])
        return examples, self._train.labels[positions]

    def losses(self, *batch: Tensor) -> dict[str, Tensor]:
        examples, labels = batch
        if isinstance(self.module, WaveNetVQVAE):
            output = self.module(examples, metrics.speakers(self.module, labels))
        else:
            output = self.module(examples)
        names = [name for name in output._fields if name.endswith("loss")]
        return {name: getattr(output, name) for name in names}

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, Coder)
        found = metrics.evaluate_reconstruction(module, self._validation)
        self._warn(found)
        measured = {"mse": found.mse, "psnr": found.psnr, "bits_per_dim": found.bits_per_dim}
        values = {name: value for name, value in measured.items() if value is not None}
        for level, use in enumerate(found.use):
            suffix = f"_{level}" if len(found.use) > 1 else ""
            values |= {f"{name}{suffix}": value for name, value in use._asdict().items()}
        return values

    def _warn(self, found: metrics.Reconstruction) -> None:
        for level, (use, size) in enumerate(zip(found.use, found.codebook_sizes, strict=True)):
            if (
                use.perplexity < _COLLAPSED_PERPLEXITY < size
                or use.largest_share > _COLLAPSED_SHARE
            ):
                which = f" of level {level}" if len(found.use) > 1 else ""
                self._report(
                    f"warning: the codebook{which} has collapsed: perplexity "
                    f"{use.perplexity:.2f} of {size}, one code takes "
                    f"{use.largest_share:.0%}"
                )
