# SPDX-License-Identifier: Apache-2.0
"""``fastvq train``, ``fastvq train-prior`` and ``fastvq experiment``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from fastvq import _checks, _config, training
from fastvq.cli import settings
from fastvq.cli.options import (
    DEFAULT_MODEL,
    Config,
    Copies,
    Model,
    Resume,
    Run,
    Set,
    Source,
    encoded,
    report,
)
from fastvq.data import DataConfig, ExampleSet
from fastvq.priors import KINDS, LevelContextConfig
from fastvq.training import Codes, ModelTraining, PriorTraining, runs
from fastvq.training.experiments import EXPERIMENTS
from fastvq.training.kinds import MODELS, ModelConfig, config_for

Out = Annotated[Path, typer.Option(help="Folder of the run.", show_default=False)]


def train(
    out: Out,
    data: Source = None,
    model: Model = None,
    config: Config = None,
    set_: Set = None,
    resume: Resume = False,
) -> None:
    """Train a VQ-VAE. Settings are data.*, model.* and training.*, see the README."""
    if resume:
        _refuse_settings(data, model, config, set_)
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
        _resume_priors(run, level, out)
        return
    count = len(training.load_model(run).level_strides)
    levels = range(count) if level is None else [level]
    if out is not None and len(levels) > 1:
        raise ValueError(f"--out is for one level of the {len(levels)}: give --level too")
    folders = [out] if out is not None else [runs.prior_folder(run, each) for each in levels]
    # before the data are encoded and anything is trained
    for folder in folders:
        runs.check(folder, {}, resume=False)
    grids = _codes(run, codes, copies)
    name = kind or training.prior.default_kind(grids)
    _checks.one_of("--kind", name, KINDS)
    sections: dict[str, type] = {
        "model": KINDS[name].config,
        "above": LevelContextConfig,
        "training": PriorTraining,
    }
    values = settings.read(sections, config, set_ or [])
    how = _config.from_dict(PriorTraining, values["training"], where="training")
    configs = [
        training.prior_config_for(
            grids,
            each,
            name,
            values["model"],
            # what is set for the levels below says nothing of the top
            values["above"] if each > 0 or len(levels) == 1 else {},
        )
        for each in levels
    ]
    for each, prior, folder in zip(levels, configs, folders, strict=True):
        training.train_prior(grids, prior, how, folder, level=each, report=report)


def experiment(
    name: Annotated[str, typer.Argument(help=f"{', '.join(EXPERIMENTS)}.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Folder of the runs, the table and the plot.")],
    data: Source = None,
    model: Model = None,
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
    data: str | None, model: str | None, config: Path | None, set_: list[str] | None
) -> tuple[DataConfig, Any, ModelTraining]:
    """Data, model (as a function of the data) and training, checked as far as can be yet."""
    model = model or DEFAULT_MODEL
    _checks.one_of("--model", model, MODELS)
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
        return encoded(run, None, copies, "auto")
    if copies:
        raise ValueError("--copies is for codes made anew: give it to fastvq encode instead")
    grids = Codes.load(codes)
    grids.check_made_by(training.load_model(run))
    return grids


def _resume_priors(run: Path, level: int | None, out: Path | None) -> None:
    """Continues the priors of a run that have been begun, or one of them."""
    if out is not None:
        folders = [out]
    elif level is not None:
        folders = [runs.prior_folder(run, level)]
    else:
        folders = runs.prior_folders(run)
    for folder in folders:
        training.resume_prior(folder, report=report)
    levels = len(training.load_model(run).level_strides)
    if out is None and level is None and len(folders) < levels:
        report(
            f"of {levels} levels {len(folders)} have a prior; train the next with "
            f"--level {len(folders)}"
        )


def _refuse_settings(*given: object) -> None:
    if any(given):
        raise ValueError("--resume continues with the settings of the run: give no others")
