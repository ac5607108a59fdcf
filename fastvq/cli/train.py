# SPDX-License-Identifier: Apache-2.0
"""``fastvq train``, ``fastvq train-prior`` and ``fastvq experiment``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvq import _config, training
from fastvq.cli import settings
from fastvq.cli.options import Config, Copies, Model, Resume, Run, Set, Source, encoded, report
from fastvq.data import DataConfig, ExampleSet
from fastvq.priors import KINDS, LevelContextConfig
from fastvq.training import Codes, ModelTraining, PriorTraining, runs
from fastvq.training.experiments import EXPERIMENTS
from fastvq.training.kinds import MODELS, ModelConfig, config_for

Out = Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)]


def train(
    out: Out,
    data: Source = None,
    model: Model = "vqvae",
    config: Config = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Train a VQ-VAE. Settings are data.*, model.* and training.*, see the README."""
    if resume:
        _refuse_settings(data, config, set_)
        training.resume_model(out, report=report)
        return
    read, make, how = _settings(data, model, config, set_)
    training.train_model(read, make, how, out, report=report)


def train_prior(
    run: Run,
    codes: Annotated[
        Path | None, typer.Option(help="File of `fastvq encode`; by default made anew.")
    ] = None,
    copies: Copies = 0,
    level: Annotated[
        int | None,
        typer.Option(min=0, help="Level to train, 0 the top; by default all, one after another."),
    ] = None,
    kind: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(KINDS)}; by default one that suits the codes."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the prior's run; by default RUN/prior, RUN/prior-1, ..."),
    ] = None,
    config: Config = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Train priors over the codes of a VQ-VAE.

    Settings are model.*, training.* and, for what lower levels are told of upper ones, above.*.
    """
    if resume:
        _refuse_settings(codes, copies, kind, config, set_)
        for folder in [out] if out is not None else runs.prior_folders(run):
            training.resume_prior(folder, report=report)
        return
    grids = _codes(run, codes, copies)
    levels = range(len(grids.grids)) if level is None else [level]
    if out is not None and len(levels) > 1:
        raise ValueError(f"--out is for one level of the {len(levels)}: give --level too")
    name = kind or training.prior.default_kind(grids)
    if name not in KINDS:
        raise ValueError(f"--kind must be one of {', '.join(KINDS)}, got {name!r}")
    sections: dict[str, type] = {
        "model": KINDS[name].config,
        "above": LevelContextConfig,
        "training": PriorTraining,
    }
    values = settings.read(sections, config, set_ or [])
    how = _config.from_dict(PriorTraining, values["training"], where="training")
    for each in levels:
        folder = out if out is not None else runs.prior_folder(run, each)
        # what is set for the levels below says nothing of the top
        above = values["above"] if each > 0 or len(levels) == 1 else {}
        prior = training.prior_config_for(grids, each, name, values["model"], above)
        training.train_prior(grids, prior, how, folder, level=each, report=report)


def experiment(
    name: Annotated[str, typer.Argument(help=f"{', '.join(EXPERIMENTS)}.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the runs, the table and the plot.")],
    data: Source = None,
    model: Model = "vqvae",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each variant.")] = 3,
    config: Config = None,
    set_: Set = None,
) -> None:
    """Vary one setting of a VQ-VAE and set what a paper claims beside what comes out.

    Settings are those of `fastvq train`. Called again on its folder it goes on where it stopped.
    """
    read, make, how = _settings(data, model, config, set_)
    found = training.run_experiment(name, read, make, how, out, seeds=seeds, report=report)
    print(training.experiments.table(found), end="")
    print(f"\ntable, plot and runs: {out}")


def _settings(
    data: str | None, model: str, config: Path | None, set_: list[str] | None
) -> tuple[DataConfig, Any, ModelTraining]:
    """Data, model (as a function of the data) and training, checked as far as can be yet."""
    if model not in MODELS:
        raise ValueError(f"--model must be one of {', '.join(MODELS)}, got {model!r}")
    sections = {
        "data": DataConfig,
        "model": MODELS[model].config_class,
        "training": ModelTraining,
    }
    values = settings.read(sections, config, set_ or [])
    if data is not None:
        values["data"]["source"] = data
    make = partial(_model, name=model, values=values["model"])
    return (
        _config.from_dict(DataConfig, values["data"], where="data"),
        make,
        _config.from_dict(ModelTraining, values["training"], where="training"),
    )


def _model(examples: ExampleSet, *, name: str, values: dict[str, Any]) -> ModelConfig:
    return config_for(examples, name, values)


def _codes(run: Path, codes: Path | None, copies: int) -> Codes:
    if codes is None:
        return encoded(run, None, copies)
    if copies:
        raise ValueError("--copies is for codes made anew: give it to fastvq encode instead")
    grids = Codes.load(codes)
    grids.check_made_by(training.load_model(run))
    return grids


def _refuse_settings(*given: object) -> None:
    if any(given):
        raise ValueError("--resume continues with the settings of the run: give no others")
