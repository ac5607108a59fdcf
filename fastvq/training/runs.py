# SPDX-License-Identifier: Apache-2.0
"""Run folders: ``config.json``, ``metrics.jsonl`` and ``checkpoints/``."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from fastvq import _config, _files, _pretrained
from fastvq import data as datasets
from fastvq.data import DataConfig, Splits
from fastvq.models import VQVAE
from fastvq.training import checkpoints

C = TypeVar("C")

RUN_NAME = "run.json"
PRIOR_FOLDER = "prior"


def create(run: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder of a run and writes its settings (section -> dataclass).

    Raises:
        FileExistsError: the folder holds a run already and ``resume`` is false.
        ValueError: it holds one of other settings and ``resume`` is true.
    """
    path = run / RUN_NAME
    # through JSON, where tuples are lists
    document = json.loads(json.dumps({n: _config.to_dict(value) for n, value in settings.items()}))
    if not path.exists():
        _files.write_json(path, document)
        return
    if not resume:
        raise FileExistsError(
            f"{run}: there is a run in this folder; resume it, or choose another folder"
        )
    before = _files.read_json(path)
    for section, values in document.items():
        for key, value in values.items():
            old = before.get(section, {}).get(key)
            if old != value:
                raise ValueError(
                    f"{section}.{key} must be {old!r}, as the run in {run} was started with, "
                    f"got {value!r}"
                )


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
    model: VQVAE,
    source: str | None = None,
    *,
    report: Callable[[str], None] = print,
) -> Splits:
    """Images for a model: those its run was trained on, or others read in the same way.

    Args:
        path: what the model was loaded from.
        model: gives the channels and the multiple to pad to.
        source: ``"digits"`` or a folder of images, instead of the run's own.
        report: takes lines about padding and skipped images.

    Raises:
        FileNotFoundError: the images are not there, or ``path`` is no run and ``source`` is absent.
        ValueError: images that the model does not take.
    """
    folder = Path(path)
    if (folder / RUN_NAME).is_file():
        config = setting(folder, "data", DataConfig)
    elif source is not None:
        config = DataConfig(channels=model.config.in_channels)
    else:
        raise FileNotFoundError(f"{folder}: no run in this folder, so the data must be named")
    if source is not None:
        config = replace(config, source=source, channels=model.config.in_channels)
    splits = datasets.load(config, multiple=model.config.stride, report=report)
    if splits.train.channels != model.config.in_channels:
        raise ValueError(
            f"images must have {model.config.in_channels} channels, those of the model, "
            f"got {splits.train.channels}"
        )
    return splits


def load_vqvae(path: str | os.PathLike[str]) -> VQVAE:
    """The VQ-VAE in a folder, or the best one of a run, on the CPU in eval mode.

    Raises:
        FileNotFoundError, ValueError: see `VQVAE.from_pretrained`.
    """
    return VQVAE.from_pretrained(model_folder(path))
