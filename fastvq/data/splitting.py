# SPDX-License-Identifier: Apache-2.0
"""Which examples train, validate and test, and what class they are of; one rule for all readers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastvq.data.examples import UNLABELLED, permutation
from fastvq.data.files import Report

TRAIN, VALIDATION, TEST = range(3)
SPLIT_FOLDERS = {
    "train": TRAIN,
    "validation": VALIDATION,
    "val": VALIDATION,
    "valid": VALIDATION,
    "test": TEST,
}
# of data that do not say which of them are for validation and which for testing
HELD_OUT = 0.1


def cut(given: Tensor) -> list[Tensor]:
    """Positions of the train, validation and test examples.

    Of a part that the data do not name, a tenth of all is cut from the training part by a fixed
    permutation (seed 0), at least one; of fewer than three examples nothing is cut.

    Args:
        given: int64 ``[N]``, the part of each example as far as the data say: 0, 1 or 2.
    """
    parts = [torch.nonzero(given == part).flatten() for part in (TRAIN, VALIDATION, TEST)]
    for missing in (VALIDATION, TEST):
        if len(parts[missing]) == 0 and len(given) >= len(parts):
            rest = parts[TRAIN][permutation(len(parts[TRAIN]))]
            held = max(1, round(HELD_OUT * len(given)))
            parts[missing], parts[TRAIN] = rest[:held], rest[held:].sort().values
    return parts


def split_folders(files: list[Path]) -> tuple[Tensor, list[Path]]:
    """The part of each file by the folders ``train``, ``validation`` and ``test``.

    Returns:
        What `cut` takes, and the paths inside these folders. Where a file lies in none of them,
        all are of part 0 and the paths are as they came.
    """
    if not all(len(file.parts) > 1 and file.parts[0] in SPLIT_FOLDERS for file in files):
        return torch.zeros(len(files), dtype=torch.int64), files
    given = torch.tensor([SPLIT_FOLDERS[file.parts[0]] for file in files])
    return given, [Path(*file.parts[1:]) for file in files]


def labels_of(
    files: Sequence[Path], pattern: str | None, report: Report
) -> tuple[Tensor, tuple[str, ...]]:
    """The class of each file: its first subfolder, or the first group of ``pattern`` in its name.

    Without a pattern no file has a label when one lies in no subfolder; where others do, that is
    reported.

    Raises:
        ValueError: ``pattern`` is no regular expression with a group, or a name does not match.
    """
    if pattern is not None:
        return numbered([_matched(file, _compiled(pattern)) for file in files])
    outside = [file for file in files if len(file.parts) <= 1]
    if outside:
        if len(outside) < len(files):
            report(
                f"{outside[0]} lies in no subfolder, as {len(outside)} of {len(files)} do: "
                "no example has a label"
            )
        return torch.full((len(files),), UNLABELLED), ()
    return numbered([file.parts[0] for file in files])


def numbered(values: Iterable[Any]) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers or names of classes as int64 positions ``[N]`` in their sorted order, and names."""
    values = list(values)
    known = sorted(set(values))
    position = {value: i for i, value in enumerate(known)}
    labels = torch.tensor([position[value] for value in values], dtype=torch.int64)
    return labels, tuple(map(str, known))


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"label_pattern {pattern!r} is no regular expression: {error}") from error
    if compiled.groups < 1:
        raise ValueError(f"label_pattern must hold a group for the class, got {pattern!r}")
    return compiled


def _matched(file: Path, pattern: re.Pattern[str]) -> str:
    found = pattern.search(file.name)
    if found is None or found[1] is None:
        raise ValueError(
            f"{file}: label_pattern must match the name of every file, "
            f"{pattern.pattern!r} finds no class in {file.name!r}"
        )
    return found[1]
