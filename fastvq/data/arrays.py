# SPDX-License-Identifier: Apache-2.0
"""Arrays of numpy: ``.npy``, memory-mapped, and ``.npz``."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data.examples import AXES, UNLABELLED, ExampleSet, Splits
from fastvq.data.files import Report
from fastvq.data.splitting import cut, numbered

Array = np.ndarray[Any, np.dtype[Any]]
SUFFIXES = frozenset((".npy", ".npz"))
LAYOUTS = ("NL", "NCL", "NHW", "NHWC", "NCHW", "NTHW", "NTHWC")
# an axis of so many entries is taken for channels, and of more for space or time
MOST_CHANNELS = 4
LABELS = "labels"
# values checked or converted at a time
_CHUNK = 1 << 24


def array_file(
    path: str | os.PathLike[str],
    *,
    layout: str | None = None,
    array_key: str | None = None,
    labels_key: str | None = None,
    report: Report = print,
) -> Splits:
    """Reads images, signals or video from one array, and splits them by a fixed permutation.

    **Values.** uint8 are levels as they are; floats must be in [0, 1] and become the nearest of
    256 levels.

    **Layouts.** ``"NL"`` and ``"NCL"`` are signals, ``"NHW"``, ``"NHWC"`` and ``"NCHW"`` images,
    ``"NTHW"`` and ``"NTHWC"`` video. Without a ``layout`` it is told from the axes: one of 1 to 4
    entries is of channels, one of more is of space or time (few frames are told apart where there
    is an axis of channels). What fits two layouts or none must be given one.

    **Memory.** A ``.npy`` file is memory-mapped: it may be larger than memory. A ``.npz`` file is
    an archive, which cannot be; its array is read whole.

    **Splits.** As `fastvq.data.folder`: a tenth for validation and a tenth for testing.

    Args:
        path: the file.
        layout: the order of the axes.
        array_key: the array among those of an ``.npz``; by default the only one but the labels.
        labels_key: integers or text ``[N]`` in an ``.npz``; by default ``labels``, and no labels
            where there is no such array.
        report: takes the line about memory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file that is cut short or holds objects; an unclear layout; values of another
            dtype or out of range; labels of another number.
    """
    file = Path(path)
    if layout is not None:
        _checks.one_of("layout", layout, LAYOUTS)
    array, names = _opened(file, array_key, labels_key)
    if file.suffix.lower() == ".npz":
        report(f"{file}: read whole into memory ({array.nbytes} bytes); a .npy is memory-mapped")
    layout = layout or _told(file, array)
    read, channels, size = reader(str(file), array, layout)
    labels, classes = torch.full((len(array),), UNLABELLED), tuple[str, ...]()
    if names is not None:
        labels, classes = numbered(_one_each(file, names, len(array)).tolist())
    whole = ExampleSet(
        kind=next(kind for kind, axes in AXES.items() if axes == len(size)),
        read=read,
        peak=255,
        channels=channels,
        size=size,
        labels=labels,
        classes=classes,
    )
    return Splits(*(whole.subset(at) for at in cut(torch.zeros(len(array), dtype=torch.int64))))


def reader(
    what: str, array: Array, layout: str
) -> tuple[Callable[[Tensor], Tensor], int, tuple[int, ...]]:
    """How examples are read from an array of that layout, their channels and their size.

    Raises:
        ValueError: no examples, other axes than the layout's, or values that are no levels.
    """
    if array.ndim != len(layout) or 0 in array.shape:
        raise ValueError(
            f"{what}: must be [{', '.join(layout)}] with at least one entry each, "
            f"got {list(array.shape)}"
        )
    _check_values(what, array)
    with_channels = layout if "C" in layout else layout + "C"
    order = [0, with_channels.index("C")]
    order += [axis for axis, name in enumerate(with_channels) if name not in "NC"]
    lengths = dict(zip(layout, array.shape, strict=True))

    def read(at: Tensor) -> Tensor:
        chosen = array[at.numpy()]
        if "C" not in layout:
            chosen = chosen[..., None]
        return torch.from_numpy(np.ascontiguousarray(levels(chosen.transpose(order))))

    size = tuple(lengths[name] for name in layout if name not in "NC")
    return read, lengths.get("C", 1), size


def levels(values: Array) -> Array:
    """uint8 levels of uint8 as they are, and of floats in [0, 1] the nearest of 256."""
    if values.dtype == np.uint8:
        return values
    return np.rint(values.astype(np.float64) * 255).astype(np.uint8)


def only_array(file: Path) -> Array:
    """The array of an ``.npy`` file, or of an ``.npz`` file the only one.

    Raises:
        FileNotFoundError, ValueError: as `array_file`.
    """
    return _opened(file, None, None)[0]


def _opened(
    file: Path, array_key: str | None, labels_key: str | None
) -> tuple[Array, Array | None]:
    """The array of a file, and its labels where it has some. Nothing is unpickled."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        if file.suffix.lower() == ".npy":
            return np.load(file, mmap_mode="r", allow_pickle=False), None
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as archive:
            if labels_key is not None:
                _checks.one_of("labels_key", labels_key, archive.files)
            names = labels_key or LABELS
            key = _key(file, archive.files, array_key, names)
            return archive[key], archive[names] if names in archive.files else None
    except (OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{file}: not a whole {file.suffix} file ({error})") from error
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _key(file: Path, keys: list[str], array_key: str | None, labels_key: str) -> str:
    if array_key is not None:
        _checks.one_of("array_key", array_key, keys)
        return array_key
    others = [key for key in keys if key != labels_key]
    if len(others) != 1:
        raise ValueError(
            f"array_key must be given unless there is one array beside {labels_key!r}, "
            f"got {', '.join(keys) or 'none'}"
        )
    return others[0]


def _told(file: Path, array: Array) -> str:
    """The one layout that the axes of an array fit."""

    def fits(layout: str) -> bool:
        return len(layout) == array.ndim and all(
            (length <= MOST_CHANNELS) == (name == "C")
            for name, length in zip(layout[1:], array.shape[1:], strict=True)
            # with a channel axis of its own, a clip may be of few frames
            if name != "T" or "C" not in layout
        )

    fitting = [layout for layout in LAYOUTS if fits(layout)]
    if len(fitting) != 1:
        raise ValueError(
            f"{file}: an array of {list(array.shape)} is of no clear layout, "
            f"{' or '.join(fitting) or 'none of ' + ', '.join(LAYOUTS)}: give the layout"
        )
    return fitting[0]


def _check_values(what: str, array: Array) -> None:
    """One pass over the values of floats; it also proves that the file can be read."""
    if array.dtype == np.uint8:
        return
    if array.dtype.kind != "f":
        raise ValueError(f"{what}: values must be uint8 or floats in [0, 1], got {array.dtype}")
    rows = max(1, _CHUNK // max(1, array[0].size))
    for start in range(0, len(array), rows):
        part = array[start : start + rows]
        # not NaN either, which compares false
        if not (part.min() >= 0 and part.max() <= 1):
            raise ValueError(
                f"{what}: floats must be in [0, 1], got [{part.min():g}, {part.max():g}]"
            )


def _one_each(file: Path, names: Array, count: int) -> Array:
    if names.shape != (count,) or names.dtype.kind not in "iuU":
        raise ValueError(
            f"{file}: labels must be [{count}] integers or text, one for each example, "
            f"got {names.dtype} {list(names.shape)}"
        )
    return names
