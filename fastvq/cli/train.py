# SPDX-License-Identifier: Apache-2.0
"""``fastvq train`` and ``fastvq train-prior``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastvq import _config, training
from fastvq.cli import settings
from fastvq.cli.options import Config, Copies, Resume, Run, Set, encoded, report
from fastvq.data import DIGITS, DataConfig
from fastvq.models import VQVAEConfig
from fastvq.priors import GatedPixelCNNConfig
from fastvq.training import Codes, PriorTraining, VQVAETraining
from fastvq.training.runs import PRIOR_FOLDER

Out = Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)]
PriorOut = Annotated[
    Path | None, typer.Option(help="Folder of the prior's run; by default RUN/prior.")
]


def train(
    out: Out,
    data: Annotated[
        str | None, typer.Option(help="'digits' (the default) or a folder of images.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Train a VQ-VAE. Settings are data.*, model.* and training.*, see the README."""
    if resume:
        _refuse_settings(data, config, set_)
        training.resume_vqvae(out, report=report)
        return
    values = settings.read(
        {"data": DataConfig, "model": VQVAEConfig, "training": VQVAETraining}, config, set_ or []
    )
    if data is not None:
        values["data"]["source"] = data
    images = _config.from_dict(DataConfig, values["data"], where="data")
    channels = 1 if images.source == DIGITS else images.channels
    model = {"in_channels": channels} | values["model"]
    training.train_vqvae(
        images,
        _config.from_dict(VQVAEConfig, model, where="model"),
        _config.from_dict(VQVAETraining, values["training"], where="training"),
        out,
        report=report,
    )


def train_prior(
    run: Run,
    codes: Annotated[
        Path | None, typer.Option(help="File of `fastvq encode`; by default made anew.")
    ] = None,
    copies: Copies = 0,
    out: PriorOut = None,
    config: Config = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Train a prior over the codes of a VQ-VAE. Settings are model.* and training.*."""
    folder = out if out is not None else run / PRIOR_FOLDER
    if resume:
        _refuse_settings(codes, copies, config, set_)
        training.resume_prior(folder, report=report)
        return
    values = settings.read(
        {"model": GatedPixelCNNConfig, "training": PriorTraining}, config, set_ or []
    )
    if codes is None:
        grids = encoded(run, None, copies)
    elif copies:
        raise ValueError("--copies is for codes made anew: give it to fastvq encode instead")
    else:
        grids = Codes.load(codes)
        grids.check_made_by(training.load_vqvae(run))
    derived = {"codebook_size": grids.codebook_size, "num_classes": grids.num_classes}
    training.train_prior(
        grids,
        _config.from_dict(GatedPixelCNNConfig, derived | values["model"], where="model"),
        _config.from_dict(PriorTraining, values["training"], where="training"),
        folder,
        report=report,
    )


def _refuse_settings(*given: object) -> None:
    if any(given):
        raise ValueError("--resume continues with the settings of the run: give no others")
