# SPDX-License-Identifier: Apache-2.0
"""Run folders: ``config.json``, ``metrics.jsonl`` and ``checkpoints/``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from fastvq import _config, _files, _pretrained
from fastvq.models import VQVAE
from fastvq.training import checkpoints

C = TypeVar("C")

RUN_NAME = "run.json"
PRIOR_FOLDER = "prior"


def create(run: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
    """Makes the folder of a run and writes its settings (name -> dataclass or plain value).

    Raises:
        FileExistsError: the folder holds a run already and ``resume`` is false.
    """
    if (run / RUN_NAME).exists():
        if resume:
            return
        raise FileExistsError(
            f"{run}: there is a run in this folder; resume it, or choose another folder"
        )
    document = {
        name: value if isinstance(value, str) else _config.to_dict(value)
        for name, value in settings.items()
    }
    _files.write_json(run / RUN_NAME, document)


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


def load_vqvae(path: str | os.PathLike[str]) -> VQVAE:
    """The VQ-VAE in a folder, or the best one of a run, on the CPU in eval mode.

    Raises:
        FileNotFoundError, ValueError: see `VQVAE.from_pretrained`.
    """
    return VQVAE.from_pretrained(model_folder(path))
