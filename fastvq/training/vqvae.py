# SPDX-License-Identifier: Apache-2.0
"""Training and measuring a `VQVAE`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastvq import data as datasets
from fastvq.data import DataConfig, Splits
from fastvq.models import VQVAE, VQVAEConfig
from fastvq.training import checkpoints, engine, metrics, runs
from fastvq.training.jitter import Jitter, jittered
from fastvq.training.processes import launched, together
from fastvq.training.progress import Report
from fastvq.training.settings import TrainingConfig, resolve_device

# the sign of a collapsed codebook: training goes on, but somebody should know
_COLLAPSED_PERPLEXITY = 1.5
_COLLAPSED_SHARE = 0.9


@dataclass(frozen=True, kw_only=True)
class VQVAETraining(TrainingConfig, Jitter):
    """How a VQ-VAE is trained: a `TrainingConfig`, and the `Jitter` of half the images."""

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        Jitter.__post_init__(self)


def train_vqvae(
    data: DataConfig,
    model: VQVAEConfig,
    training: VQVAETraining,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Report = print,
) -> VQVAE:
    """Trains a VQ-VAE on images and returns the one with the best validation error.

    Args:
        data: the images.
        model: the model; ``in_channels`` must be that of the images.
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

        model = train_vqvae(DataConfig(), VQVAEConfig(), VQVAETraining(steps=500), "runs/digits")
    """
    processes = launched()
    device = resolve_device(training.device, processes.local)
    splits = datasets.load(data, multiple=model.stride, report=report)
    if splits.train.channels != model.in_channels:
        raise ValueError(
            f"in_channels must be {splits.train.channels}, the channels of the images, "
            f"got {model.in_channels}"
        )
    for split in ("train", "validation"):
        splits.part(split)
    run = Path(out)
    settings = {"data": data, "model": model, "training": training}
    with together(processes, device), engine.seeded(training.seed, device):
        processes.by_first(lambda: runs.create(run, settings, resume=resume))
        task = _Task(VQVAE(model).to(device), splits, training, report)
        engine.fit(task, training, run, processes=processes, resume=resume, report=report)
        return VQVAE.from_pretrained(processes.by_first(lambda: checkpoints.best(run)))


def resume_vqvae(run: str | os.PathLike[str], *, report: Report = print) -> VQVAE:
    """Continues the run in a folder with the settings it was started with.

    Raises:
        FileNotFoundError: there is no run in the folder.
    """
    folder = Path(run)
    return train_vqvae(
        runs.setting(folder, "data", DataConfig),
        runs.setting(folder, "model", VQVAEConfig),
        runs.setting(folder, "training", VQVAETraining),
        folder,
        resume=True,
        report=report,
    )


class _Task:
    """A VQ-VAE and its images, for the loop."""

    score = "mse"

    def __init__(self, module: VQVAE, splits: Splits, jitter: Jitter, report: Report) -> None:
        self.module, self.config = module, module.config
        self.examples = len(splits.train)
        self._train, self._validation = splits.train, splits.validation
        self._jitter, self._report = jitter, report

    def batch(self, positions: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        images = self._train.batch(positions)
        if self._jitter.moves:
            # the other half keeps the model at home in images as they are
            half = len(images) // 2
            images = torch.cat([jittered(images[:half], self._jitter, generator), images[half:]])
        return (images,)

    def losses(self, *batch: Tensor) -> dict[str, Tensor]:
        output = self.module(*batch)
        return {
            "loss": output.loss,
            "reconstruction_loss": output.reconstruction_loss,
            "quantizer_loss": output.quantizer_loss,
        }

    def validate(self, module: nn.Module) -> dict[str, float]:
        assert isinstance(module, VQVAE)
        found = metrics.evaluate_reconstruction(module, self._validation)
        if (
            found.perplexity < _COLLAPSED_PERPLEXITY < found.codebook_size
            or found.largest_share > _COLLAPSED_SHARE
        ):
            self._report(
                f"warning: the codebook has collapsed: perplexity {found.perplexity:.2f} of "
                f"{found.codebook_size}, one code takes {found.largest_share:.0%}"
            )
        return {
            "mse": found.mse,
            "psnr": found.psnr,
            "perplexity": found.perplexity,
            "codes_used": found.codes_used,
        }
