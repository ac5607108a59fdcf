# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 and CIFAR-100 as their authors pack them: batches for Python, and the binary version."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastvq.data.examples import Splits, in_memory
from fastvq.data.splitting import TEST, TRAIN, cut
from fastvq.data.unpickling import unpickled

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Version:
    """One of the four ways in which the sets are packed.

    Attributes:
        train: files of the training images.
        test: the file of the test images.
        names: the file of the names of the classes.
        labels_key: that of the labels in a Python batch.
        names_key: that of the names in their Python file.
        label_bytes: of a binary record; 0 for the Python version.
        label_at: which byte of a binary record is the label.
    """

    train: tuple[str, ...]
    test: str
    names: str
    labels_key: str = ""
    names_key: str = ""
    label_bytes: int = 0
    label_at: int = 0


def _versions(coarse: bool) -> tuple[_Version, ...]:
    level = "coarse" if coarse else "fine"
    ten = tuple(f"data_batch_{i}" for i in range(1, 6))
    binary = tuple(f"{name}.bin" for name in ten)
    return (
        _Version(ten, "test_batch", "batches.meta", labels_key="labels", names_key="label_names"),
        _Version(binary, "test_batch.bin", "batches.meta.txt", label_bytes=1),
        _Version(
            ("train",),
            "test",
            "meta",
            labels_key=f"{level}_labels",
            names_key=f"{level}_label_names",
        ),
        _Version(
            ("train.bin",),
            "test.bin",
            f"{level}_label_names.txt",
            label_bytes=2,
            label_at=0 if coarse else 1,
        ),
    )


def cifar(path: str | os.PathLike[str], *, coarse: bool = False) -> Splits:
    """Reads CIFAR-10 or CIFAR-100, whichever the folder holds, in the Python or binary version.

    Images are uint8 ``[3, 32, 32]``. The test file is the test part, and of the training files a
    part as large as a tenth of all images is cut for validation by a fixed permutation (seed 0).
    The batches for Python are pickles: they are read by an unpickler that builds arrays of bytes
    and plain containers alone and refuses all else by name.

    Args:
        path: the folder of the files (``cifar-10-batches-py``, ``cifar-100-binary``).
        coarse: the 20 superclasses of CIFAR-100 in place of its 100 classes.

    Raises:
        FileNotFoundError: no such folder, or one of the files is not in it.
        ValueError: ``coarse`` with CIFAR-10; a file that is cut short or holds something else.

    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    root = Path(path)
    version = _version(root, coarse)
    if coarse and len(version.train) > 1:
        raise ValueError(f"{root}: coarse labels are of CIFAR-100, got CIFAR-10")
    read = _read_binary if version.label_bytes else _read_python
    batches = [read(root / name, version) for name in (*version.train, version.test)]
    labels = torch.from_numpy(np.concatenate([labels for labels, _ in batches])).long()
    classes = _names(root / version.names, version)
    if len(labels) and int(labels.max()) >= len(classes):
        raise ValueError(
            f"{root / version.names}: must name a class for each label up to {int(labels.max())}, "
            f"got {len(classes)}"
        )
    pixels = np.concatenate([pixels for _, pixels in batches]).reshape(-1, 3, 32, 32)
    whole = in_memory(torch.from_numpy(pixels), labels, peak=255, classes=classes)
    tests = len(batches[-1][0])
    given = torch.tensor([TRAIN] * (len(labels) - tests) + [TEST] * tests)
    return Splits(*(whole.subset(at) for at in cut(given)))


def is_cifar(path: Path) -> bool:
    """Whether the folder holds files of one of the versions."""
    return any(_marks(path, version) for version in _versions(coarse=False))


def _marks(root: Path, version: _Version) -> bool:
    """Whether a folder is of this version: one of its training files is there."""
    return any((root / name).is_file() for name in version.train)


def _version(root: Path, coarse: bool) -> _Version:
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    for version in _versions(coarse):
        if _marks(root, version):
            for name in (*version.train, version.test, version.names):
                if not (root / name).is_file():
                    raise FileNotFoundError(f"{root}: CIFAR's file {name} is not in this folder")
            return version
    raise FileNotFoundError(
        f"{root}: no files of CIFAR such as data_batch_1, data_batch_1.bin, train or train.bin"
    )


def _read_binary(file: Path, version: _Version) -> tuple[Bytes, Bytes]:
    """Labels ``[N]`` and pixels ``[N, 3072]`` of records of 1 or 2 label bytes and 3072 pixels."""
    content = np.fromfile(file, np.uint8)
    record = version.label_bytes + PIXELS
    if len(content) == 0 or len(content) % record:
        raise ValueError(
            f"{file}: must be a multiple of {record} bytes, the size of a record, "
            f"got {len(content)}"
        )
    records = content.reshape(-1, record)
    return records[:, version.label_at], records[:, version.label_bytes :]


def _read_python(file: Path, version: _Version) -> tuple[Bytes, Bytes]:
    batch = unpickled(file)
    pixels = _entry(file, batch, "data", lambda value: isinstance(value, np.ndarray))
    labels = _entry(file, batch, version.labels_key, _are_labels)
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise ValueError(
            f"{file}: data must be uint8 {[len(labels), PIXELS]}, one row for each label, "
            f"got {pixels.dtype} {list(pixels.shape)}"
        )
    return np.array(labels, np.uint8), pixels


def _names(file: Path, version: _Version) -> tuple[str, ...]:
    if not version.names_key:
        return tuple(file.read_text(encoding="utf-8").split())
    names = _entry(file, unpickled(file), version.names_key, lambda v: isinstance(v, list))
    return tuple(_text(name) for name in names)


def _entry(file: Path, batch: Any, key: str, fits: Callable[[Any], bool]) -> Any:
    """One entry of a batch, whose keys are bytes when Python 2 wrote them and text otherwise."""
    entries = {_text(k): v for k, v in batch.items()} if isinstance(batch, dict) else {}
    value = entries.get(key)
    if not fits(value):
        raise ValueError(f"{file}: must be a CIFAR batch with {key!r}, got another pickle")
    return value


def _are_labels(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 256 for v in value)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
