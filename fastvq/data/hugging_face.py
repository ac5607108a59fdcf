# SPDX-License-Identifier: Apache-2.0
"""Data sets of images or sound in Hugging Face's format, by name or from a folder."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data.audio import TAILS, chunks_of
from fastvq.data.decoding import pixels
from fastvq.data.examples import UNLABELLED, Splits
from fastvq.data.files import Report
from fastvq.data.folders import check_pixels
from fastvq.data.pieces import Levels, Pieces
from fastvq.data.splitting import SPLIT_FOLDERS, TRAIN, numbered
from fastvq.data.torch_datasets import Row
from fastvq.data.wav import Recording, resampled

# class of a column's feature -> what it holds
KINDS = {"Image": "image", "Audio": "audio"}
# files of `save_to_disk`, of several splits or of one
_ON_DISK = ("dataset_dict.json", "state.json")


def from_hugging_face(
    name: str,
    *,
    array_key: str | None = None,
    labels_key: str | None = None,
    image_size: int | None = None,
    channels: int = 3,
    length: int | None = None,
    sample_rate: int | None = None,
    tail: str = "pad",
    report: Report = print,
) -> Splits:
    """Reads a data set of the library ``datasets``: by name or saved to disk.

    The library downloads what is not on this machine. Columns of images are read by the rule of
    `fastvq.data.folder`, columns of sound by that of `fastvq.data.audio_folder`, rows in the place
    of files.

    **Splits.** ``train``, ``validation`` (or ``val``, ``valid``) and ``test``; what is missing is
    cut from ``train`` as by `fastvq.data.folder`. Others are named and left out.

    Args:
        name: the name on the hub, or a folder.
        array_key: the column of images or sound; by default the only one.
        labels_key: the column of classes; by default the only `ClassLabel`, and no labels where
            there is none. A class of -1 is none.
        image_size: of images, pixels per side, or ``None`` to keep the size.
        channels: of images, 1 for grey, 3 for RGB.
        length: of sound, samples of a chunk.
        sample_rate: of sound, samples per second, or ``None`` where all rows have one rate.
        tail: of sound, ``"pad"`` or ``"drop"`` what does not fill a chunk.
        report: takes the lines about splits left out.

    Raises:
        ModuleNotFoundError: ``datasets`` is absent (it comes with no extra of this package).
        ValueError: no training rows; no column of images or sound, or several and no
            ``array_key``; several of classes and no ``labels_key``; sound without ``length``;
            differing sizes or rates.
    """
    check_pixels(image_size, channels)
    _checks.one_of("tail", tail, TAILS)
    parts = _by_part(name, _loaded(name), report)
    features = parts[TRAIN].features
    column = _column(name, "array_key", array_key, features, KINDS)
    kind = KINDS.get(type(features.get(column)).__name__)
    if column is None or kind is None:
        raise ValueError(
            f"{name}: must hold a column of images or sound, got {column or _listed(features)}"
        )
    if kind == "audio" and length is None:
        raise ValueError(f"length must be given for the sound of {name}, got None")
    rates: set[int] = set()

    def decode(row: Row) -> Levels:
        value = parts[row.part][row.at][column]
        if length is None or kind == "image":
            return pixels(value, image_size=image_size, channels=channels)[None]
        recording = _recording(value)
        if sample_rate is not None:
            recording = resampled(recording, sample_rate)
        rates.add(recording.rate)
        return chunks_of(recording, length, tail)

    pieces = Pieces[Row](f"{name}: examples", lambda row, k: decode(row)[k])
    for part in sorted(parts):
        for at in range(len(parts[part])):
            decoded = decode(Row(part, at))
            if len(rates) > 1:
                raise ValueError(
                    f"{name}: {Row(part, at)} must have the sample rate of those before it, got "
                    f"{' and '.join(map(str, sorted(rates)))} (give a sample_rate to resample all)"
                )
            if len(decoded):
                pieces.add(Row(part, at), decoded)
    if not pieces.sources:
        raise ValueError(f"{name}: no row holds an example")
    label = _column(name, "labels_key", labels_key, features, ("ClassLabel",))
    labels, classes = _labels(pieces.sources, parts, features, label)
    given = torch.tensor([row.part for row in pieces.sources])
    return pieces.splits(kind, given, labels, classes, rate=min(rates, default=None))


def is_on_disk(path: Path) -> bool:
    """Whether ``save_to_disk`` of the library wrote this folder."""
    return any((path / name).is_file() for name in _ON_DISK)


def _loaded(name: str) -> Any:
    import datasets

    return datasets.load_from_disk(name) if is_on_disk(Path(name)) else datasets.load_dataset(name)


def _by_part(name: str, loaded: Any, report: Report) -> dict[int, Any]:
    """The data sets by part, 0 to 2; one without splits is for training."""
    splits = loaded if isinstance(loaded, Mapping) else {Splits._fields[TRAIN]: loaded}
    parts = {SPLIT_FOLDERS[split]: splits[split] for split in splits if split in SPLIT_FOLDERS}
    if TRAIN not in parts:
        raise ValueError(f"{name}: must have a split named train, got {_listed(splits)}")
    left = [split for split in splits if split not in SPLIT_FOLDERS]
    if left:
        report(f"{name}: left out, being no part for training or testing: {_listed(left)}")
    return parts


def _column(
    name: str, key: str, given: str | None, features: Mapping[str, Any], kinds: Collection[str]
) -> str | None:
    """The column of that name, or the only one of these kinds; ``None`` where there is none."""
    if given is not None:
        _checks.one_of(key, given, features)
        return given
    found = [column for column in features if type(features[column]).__name__ in kinds]
    if len(found) > 1:
        raise ValueError(f"{key} must be given for {name}: one of {_listed(found)}")
    return found[0] if found else None


def _labels(
    rows: list[Row], parts: dict[int, Any], features: Mapping[str, Any], column: str | None
) -> tuple[Tensor, tuple[str, ...]]:
    if column is None:
        return torch.full((len(rows),), UNLABELLED), ()
    columns = {part: list(parts[part][column]) for part in parts}
    values = [columns[row.part][row.at] for row in rows]
    names = getattr(features[column], "names", None)
    return numbered(values) if names is None else (torch.tensor(values), tuple(names))


def _recording(value: Any) -> Recording:
    """A decoded sound: samples ``[n]`` or, channels first, ``[C, n]``."""
    samples = np.asarray(value["array"], np.float64)
    return Recording(samples.reshape(-1, samples.shape[-1]).mean(0), int(value["sampling_rate"]))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
