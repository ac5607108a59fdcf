# SPDX-License-Identifier: Apache-2.0
"""Any map-style `torch.utils.data.Dataset`: those of torchvision, or the user's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data.decoding import pixels
from fastvq.data.examples import AXES, UNLABELLED, Splits
from fastvq.data.folders import check_pixels
from fastvq.data.pieces import Levels, Pieces


class MapStyle(Protocol):
    """What has a length and items by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class Row(NamedTuple):
    """Where an example comes from.

    Attributes:
        part: 0, 1 or 2 for the train, validation or test data set.
        at: its position there.
    """

    part: int
    at: int

    def __str__(self) -> str:
        return f"{Splits._fields[self.part]}[{self.at}]"


def from_torch(
    train: MapStyle,
    *,
    validation: MapStyle | None = None,
    test: MapStyle | None = None,
    image_size: int | None = None,
    channels: int = 3,
) -> Splits:
    """Reads map-style data sets.

    **Items** are examples, or tuples that begin with an example and its label (an int or a tensor
    of one). Examples are PIL images, which become grey or RGB and of one size as those of
    `fastvq.data.folder`, or tensors ``[C, L]`` (signals), ``[C, H, W]`` (images) or
    ``[C, T, H, W]`` (video) of uint8 levels or of floats in [0, 1], which become the nearest of 256
    levels. Each item is read once, in order; what exceeds 4 GiB is read again batch by batch. So a
    data set that changes its items at random must not be used.

    **Labels.** Names of classes are those of ``train.classes`` where there are such, else numbers.

    **Splits.** A part that is not given is cut from ``train`` as by `fastvq.data.folder`.

    Args:
        train: the training data.
        validation: the validation data.
        test: the test data.
        image_size: of PIL images, pixels per side, or ``None`` to keep the size.
        channels: of PIL images, 1 for grey, 3 for RGB.

    Raises:
        TypeError: an item is nothing of these; the data have no length.
        ValueError: no items, floats out of range, differing shapes, labels of some items only,
            negative labels.
    """
    check_pixels(image_size, channels)
    given = [train, validation, test]
    for name, dataset in zip(Splits._fields, given, strict=True):
        if dataset is not None and not (
            hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        ):
            raise TypeError(
                f"{name} must be a map-style data set, with a length and items by position, "
                f"got {type(dataset).__name__}"
            )
    parts: list[MapStyle] = [[] if dataset is None else dataset for dataset in given]
    # a data set need not bear threads
    lock = threading.Lock()

    def item(row: Row) -> tuple[Levels, int]:
        with lock:
            example, label = _parted(row, parts[row.part][row.at])
        return _levels(row, example, image_size, channels), label

    pieces = Pieces[Row]("examples", lambda row, _: item(row)[0])
    labels: list[int] = []
    for part, dataset in enumerate(parts):
        for index in range(len(dataset)):
            row = Row(part, index)
            levels, label = item(row)
            if labels and (label == UNLABELLED) != (labels[0] == UNLABELLED):
                raise ValueError(
                    f"labels must be of all examples or none: {pieces.sources[0]} "
                    f"has {_said(labels[0])}, {row} has {_said(label)}"
                )
            pieces.add(row, levels[None])
            labels.append(label)
    if not labels:
        raise ValueError("data sets must hold at least one example, got none")
    kind = next(kind for kind, axes in AXES.items() if axes == levels.ndim - 1)
    names = classes_of(labels, getattr(train, "classes", ()))
    return pieces.splits(
        kind,
        torch.tensor([row.part for row in pieces.sources]),
        torch.tensor(labels),
        names,
    )


def classes_of(labels: Sequence[int], known: Sequence[Any]) -> tuple[str, ...]:
    """A name for each label: the known ones when they suffice, else numbers."""
    count = max(labels) + 1
    return tuple(map(str, known if 0 < count <= len(known) else range(count)))


def _parted(row: Row, item: Any) -> tuple[Any, int]:
    """The example of an item and its label."""
    if not isinstance(item, tuple | list):
        return item, UNLABELLED
    if len(item) < 2:
        raise TypeError(f"{row} must be an example or (example, label), got {len(item)} entries")
    example, label = item[:2]
    if isinstance(label, Tensor | np.ndarray | np.generic) and np.asarray(label).size == 1:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int):
        raise TypeError(f"the label of {row} must be an int, got {label!r}")
    if label < 0:
        raise ValueError(f"the label of {row} must be at least 0, got {label}")
    return example, label


def _levels(row: Row, example: Any, image_size: int | None, channels: int) -> Levels:
    """uint8 ``[C, *size]`` of an example."""
    if not isinstance(example, Tensor):
        from PIL.Image import Image

        if not isinstance(example, Image):
            raise TypeError(f"{row} must be a PIL image or a tensor, got {type(example).__name__}")
        return pixels(example, image_size=image_size, channels=channels)
    if example.ndim - 1 not in AXES.values() or 0 in example.shape:
        raise ValueError(
            f"{row} must be [C, L], [C, H, W] or [C, T, H, W], got {_checks.shape(example)}"
        )
    example = example.detach().cpu()
    if example.dtype == torch.uint8:
        return example.numpy()
    _checks.floating(str(row), example)
    low, high = float(example.min()), float(example.max())
    # not NaN either, which compares false
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{row}: floats must be in [0, 1], got [{low:g}, {high:g}]")
    return (example.double() * 255).round().to(torch.uint8).numpy()


def _said(label: int) -> str:
    return "none" if label == UNLABELLED else str(label)
