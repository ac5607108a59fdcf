# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: written whole or not at all, and read without unpickling anything.

A checkpoint is a folder ``checkpoints/step-00000500`` of

- ``config.json`` and ``model.safetensors``: the model alone, what ``from_pretrained`` reads;
- ``state.safetensors``: optimizer moments and, where the model is an average over the steps, the
  weights that are trained;
- ``state.json``: the step, which is also the position in the data, in the schedule and in the
  random numbers, the best step so far, and the settings of the optimizer.

It is filled under another name and renamed, so a run killed at any moment leaves the one before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from fastvq import _config, _files, _pretrained

FOLDER = "checkpoints"
FORMAT_VERSION = 1
_PREFIX = "step-"
_UNFINISHED = ".unfinished-"
_OPTIMIZER, _TRAINED = "optimizer.", "trained."


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a run stands.

    Attributes:
        step: optimizer steps taken; position in the data, the schedule and the random numbers.
        best_step: the step with the best validation score, 0 before the first.
        best_score: that score; lower is better.
        stale: validations since then.
        seconds: wall clock of all parts of the run.
    """

    step: int = 0
    best_step: int = 0
    best_score: float | None = None
    stale: int = 0
    seconds: float = 0.0


class Parts(NamedTuple):
    """What a checkpoint holds of a run.

    Attributes:
        trained: the module whose parameters the optimizer moves.
        averaged: the running average of it, or ``None``.
        optimizer: of the parameters of ``trained``.
    """

    trained: nn.Module
    averaged: nn.Module | None
    optimizer: Optimizer

    @property
    def model(self) -> nn.Module:
        """The module that is validated and kept."""
        return self.trained if self.averaged is None else self.averaged


def save(run: Path, parts: Parts, config: Any, state: State, *, keep: int) -> Path:
    """Writes a checkpoint and deletes the old ones but the last ``keep`` and the best.

    Args:
        run: the folder of the run.
        parts: modules and optimizer.
        config: of the model, a dataclass.
        state: where the run stands.
        keep: how many checkpoints stay, at least 1.

    Raises:
        OSError: the disk is full, or cannot be written to; the checkpoints before it stay.
    """
    root = run / FOLDER
    final = root / f"{_PREFIX}{state.step:08d}"
    temporary = root / f"{_UNFINISHED}{final.name}"
    _remove_unfinished(root)
    temporary.mkdir(parents=True)
    with _whole(temporary):
        _write(temporary, parts, config, state)
    if final.exists():
        _remove(final)
    os.replace(temporary, final)
    wanted = {f"{_PREFIX}{state.best_step:08d}"}
    for old in steps(run)[:-keep]:
        if old.name not in wanted:
            _remove(old)
    return final


def load(checkpoint: Path, parts: Parts) -> State:
    """Restores modules and optimizer; returns where the run stands.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of another model.
    """
    document = _read_state(checkpoint)
    state = _state(document, checkpoint)
    tensors = _pretrained.load_tensors(checkpoint / "state.safetensors")
    _pretrained.load_weights(checkpoint, parts.model)
    if parts.averaged is not None:
        _pretrained.load_state(
            parts.trained, _under(tensors, _TRAINED), where=str(checkpoint / "state.safetensors")
        )
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _under(tensors, _OPTIMIZER).items():
        index, key = name.split(".")
        moments.setdefault(int(index), {})[key] = tensor
    own = parts.optimizer.state_dict()["param_groups"]
    groups = [
        {**group, "params": mine["params"]}
        for group, mine in zip(document["optimizer"], own, strict=True)
    ]
    parts.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state


def steps(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    return sorted((run / FOLDER).glob(f"{_PREFIX}*"))


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run, ``None`` when it has none yet."""
    found = steps(run)
    return found[-1] if found else None


def best(run: Path) -> Path:
    """The checkpoint with the best validation score.

    Raises:
        FileNotFoundError: the run has no checkpoint yet.
    """
    newest = latest(run)
    if newest is None:
        raise FileNotFoundError(f"{run}: no checkpoint in this run")
    state = _state(_read_state(newest), newest)
    return run / FOLDER / f"{_PREFIX}{state.best_step:08d}"


def _write(folder: Path, parts: Parts, config: Any, state: State) -> None:
    _pretrained.save(folder, parts.model, config)
    tensors, groups = _optimizer_state(parts.optimizer)
    if parts.averaged is not None:
        own = parts.trained.state_dict()
        tensors |= {f"{_TRAINED}{name}": tensor for name, tensor in own.items()}
    _pretrained.save_tensors(folder / "state.safetensors", tensors)
    document = {
        "format_version": FORMAT_VERSION,
        "state": dataclasses.asdict(state),
        "optimizer": groups,
    }
    _files.write_json(folder / "state.json", document)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[None]:
    """Deletes a folder that could not be filled."""
    from safetensors import SafetensorError

    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder)
        # what safetensors makes of a full disk
        if isinstance(error, SafetensorError):
            raise OSError(f"{folder}: cannot be written ({error})") from error
        raise


def _read_state(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint / "state.json"
    document = _files.read_json(path)
    if document.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path}: format_version must be {FORMAT_VERSION}, "
            f"got {document.get('format_version')!r}"
        )
    absent = [name for name in ("state", "optimizer") if name not in document]
    if absent:
        raise ValueError(f"{path}: {' and '.join(absent)} must be there, got {list(document)}")
    return document


def _state(document: dict[str, Any], checkpoint: Path) -> State:
    return _config.from_dict(State, document["state"], where=str(checkpoint / "state.json"))


def _optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Moments under flat names, and the settings of each group without its parameters."""
    document = optimizer.state_dict()
    moments = {
        f"{_OPTIMIZER}{index}.{name}": value
        for index, entry in document["state"].items()
        for name, value in entry.items()
    }
    groups = [
        {name: value for name, value in group.items() if name != "params"}
        for group in document["param_groups"]
    ]
    return moments, groups


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


def _remove(checkpoint: Path) -> None:
    """Deletes a checkpoint; renamed first, so that a half-deleted one is never taken for whole."""
    doomed = checkpoint.with_name(f"{_UNFINISHED}{checkpoint.name}")
    os.replace(checkpoint, doomed)
    shutil.rmtree(doomed)


def _remove_unfinished(root: Path) -> None:
    for leftover in root.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(leftover)
