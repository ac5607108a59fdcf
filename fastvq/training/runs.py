# SPDX-License-Identifier: Apache-2.0
"""Run folders: ``run.json``, ``metrics.jsonl`` and ``checkpoints/``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fastvq import _checks, _config, _files, _pretrained
from fastvq import data as datasets
from fastvq.data import DataConfig, ExampleSet, Splits
from fastvq.models import Coder, WaveNetVQVAEConfig
from fastvq.training import checkpoints
from fastvq.training.kinds import MODELS, ModelConfig, load_pretrained, model_name

C = TypeVar("C")

RUN_NAME = "run.json"
PRIOR_FOLDER = "prior"
_PIXEL_CHANNELS = (1, 3)


@dataclass(frozen=True)
class Kind:
    """Which class the model of a run is of, by name."""

    name: str


def prior_folder(run: Path, level: int) -> Path:
    """Where the prior of a level lies by default: ``prior`` of the top, ``prior-1``, ..."""
    return run / (PRIOR_FOLDER if level == 0 else f"{PRIOR_FOLDER}-{level}")


def prior_folders(run: Path, *, absent_ok: bool = False) -> list[Path]:
    """The folders of the priors that lie in a run, of the top level first.

    Raises:
        FileNotFoundError: there is none, and ``absent_ok`` is false.
    """
    found: list[Path] = []
    while ((folder := prior_folder(run, len(found))) / RUN_NAME).is_file():
        found.append(folder)
    if not found and not absent_ok:
        raise FileNotFoundError(f"{prior_folder(run, 0)}: no prior in this run; train one first")
    return found


def create(run: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder of a run and writes its settings (section -> dataclass).

    Raises:
        FileExistsError, ValueError: as `check`.
    """
    check(run, settings, resume=resume)
    if not (run / RUN_NAME).exists():
        _files.write_json(run / RUN_NAME, _document(settings))


def check(run: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Finds out whether a folder can take a run of these settings; writes nothing.

    Raises:
        FileExistsError: the folder holds a run already and ``resume`` is false, or checkpoints of
            one whose settings are lost.
        ValueError: it holds one of other settings and ``resume`` is true.
    """
    path = run / RUN_NAME
    if not path.exists():
        if checkpoints.latest(run) is not None:
            raise FileExistsError(f"{run}: there are checkpoints in this folder, but no {RUN_NAME}")
        return
    if not resume:
        raise FileExistsError(
            f"{run}: there is a run in this folder; resume it, or choose another folder"
        )
    before = _files.read_json(path)
    for section, values in _document(settings).items():
        for key, value in values.items():
            old = before.get(section, {}).get(key)
            if old != value:
                raise ValueError(
                    f"{section}.{key} must be {old!r}, as the run in {run} was started with, "
                    f"got {value!r}"
                )


def _document(settings: Mapping[str, Any]) -> dict[str, Any]:
    # through JSON, where tuples are lists
    document = {name: _config.to_dict(value) for name, value in settings.items()}
    plain: dict[str, Any] = json.loads(json.dumps(document))
    return plain


def setting(run: Path, name: str, kind: type[C]) -> C:
    """One dataclass among the settings of a run.

    Raises:
        FileNotFoundError: there is no run in the folder.
        ValueError: the run has no such setting, or one with an unknown key.
    """
    document = _files.read_json(run / RUN_NAME)
    if name not in document:
        raise ValueError(f"{run / RUN_NAME}: {name!r} is missing")
    return _config.from_dict(kind, document[name], where=name)


def model_settings(data: DataConfig, model: ModelConfig, training: Any) -> dict[str, Any]:
    """The settings of the run of a VQ-VAE, as `create` takes them."""
    kind = Kind(model_name(model))
    return {"data": data, "kind": kind, "model": model, "training": training}


def model_config(run: Path) -> ModelConfig:
    """The model's config among the settings of a run."""
    name = setting(run, "kind", Kind).name
    _checks.one_of(f"kind.name of {run / RUN_NAME}", name, MODELS)
    return setting(run, "model", MODELS[name].config_class)


def model_folder(path: str | os.PathLike[str]) -> Path:
    """Where the model is: ``path`` itself if it holds one, else the best checkpoint of the run.

    Raises:
        FileNotFoundError: neither a model nor a run with a checkpoint.
    """
    folder = Path(path)
    if (folder / _pretrained.CONFIG_NAME).is_file():
        return folder
    return checkpoints.best(folder)


def load_data(
    path: str | os.PathLike[str],
    model: Coder,
    source: str | None = None,
    *,
    report: Callable[[str], None] = print,
) -> Splits:
    """Data for a model: what its run was trained on, or other data read in the same way.

    Args:
        path: what the model was loaded from.
        model: gives the channels and the multiple to pad to.
        source: see `DataConfig`; instead of the run's own.
        report: takes lines about padding and skipped images.

    Raises:
        FileNotFoundError: the data is not there, or ``path`` is no run and ``source`` is absent.
        ValueError: data that the model does not take.
    """
    folder = Path(path)
    if (folder / RUN_NAME).is_file():
        config = setting(folder, "data", DataConfig)
    elif source is not None:
        config = DataConfig()
    else:
        raise FileNotFoundError(f"{folder}: no run in this folder, so the data must be named")
    if source is not None:
        config = replace(config, source=source)
        # images may be read as grey or RGB; others have the channels that they have
        if model.config.in_channels in _PIXEL_CHANNELS:
            config = replace(config, channels=model.config.in_channels)
    splits = datasets.load(config, multiple=model.level_strides[0], report=report)
    check_fit(model.config, splits.train)
    return splits


def check_fit(model: ModelConfig, examples: ExampleSet) -> None:
    """Raises ``ValueError`` unless a model takes such data."""
    wanted = {"in_channels": examples.channels, "spatial_dims": len(examples.size)}
    if isinstance(model, WaveNetVQVAEConfig):
        wanted["levels"] = examples.levels
        if model.num_speakers is not None:
            wanted["num_speakers"] = len(examples.classes)
    elif model.likelihood != "mse":
        wanted["levels"] = examples.levels
    for name, value in wanted.items():
        if getattr(model, name) != value:
            raise ValueError(
                f"{name} must be {value}, that of the {examples.kind} data, "
                f"got {getattr(model, name)}"
            )


def load_model(path: str | os.PathLike[str]) -> Coder:
    """The VQ-VAE in a folder, or the best one of a run, on the CPU in eval mode.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of no known model.
    """
    return load_pretrained(model_folder(path))
