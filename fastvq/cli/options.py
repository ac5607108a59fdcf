# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastvq import training
from fastvq.models.base import Coder
from fastvq.training import Codes, TrainedPrior, runs
from fastvq.training.kinds import MODELS

DEFAULT_MODEL = "vqvae"
_OTHERS = [name for name in MODELS if name != DEFAULT_MODEL]
Run = Annotated[Path, typer.Argument(help="Folder of a trained VQ-VAE.", show_default=False)]
Data = Annotated[
    str | None,
    typer.Option(help="What `fastvq train` takes; by default what the run was trained on."),
]
Source = Annotated[
    str | None,
    typer.Option(
        help="digits (the default), photos, eeg, ecg, clips, hf:NAME, a folder of images, WAV "
        "files or videos, MNIST's or CIFAR's files, an .npy or .npz file."
    ),
]
Model = Annotated[
    str | None, typer.Option(help=f"{DEFAULT_MODEL} (the default) or {' or '.join(_OTHERS)}.")
]
Device = Annotated[
    str, typer.Option(help="Where to compute: auto is CUDA where there is one, else the CPU.")
]
Split = Annotated[str, typer.Option(help="train, validation, test or all.")]
Config = Annotated[Path | None, typer.Option(help="TOML file of settings.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="One setting; may be repeated."),
]
Copies = Annotated[
    int,
    typer.Option(
        min=0,
        help="Encode the training images so many times more, moved by the training.rotate, zoom "
        "and shift of the run.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run with its own settings.")]
Priors = Annotated[
    list[Path] | None,
    typer.Option(
        "--prior",
        help="Folder of a prior's run, of the top level first; may be repeated. By default those "
        "of the run.",
    ),
]


def encoded(run: Path, data: str | None, copies: int, device: str) -> Codes:
    """The codes of a data set by the model of a run, moved copies as the run's training moves."""
    model = load_model(run, device)
    splits = training.load_data(run, model, data, report=report)
    jitter = runs.setting(run, "training", training.ModelTraining) if copies else None
    return training.encode_splits(model, splits, copies=copies, jitter=jitter)


def load_model(run: Path, device: str) -> Coder:
    """The model of a run, on a device."""
    where = training.resolve_device(device)
    return training.load_model(run).to(where)


def load_priors(run: Path, given: list[Path] | None, device: str) -> list[TrainedPrior]:
    """The priors in folders, or those that lie in a run, on a device; the top level first."""
    priors = [training.load_prior(folder) for folder in given or runs.prior_folders(run)]
    for trained in priors:
        trained.prior.to(training.resolve_device(device))
    return priors


def report(line: str) -> None:
    """Progress goes to stderr, so that stdout holds results alone."""
    print(line, file=sys.stderr, flush=True)
