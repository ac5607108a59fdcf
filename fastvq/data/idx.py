# SPDX-License-Identifier: Apache-2.0
"""The MNIST family in its own format, IDX: MNIST, Fashion-MNIST, KMNIST, EMNIST."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastvq.data.examples import Splits, in_memory
from fastvq.data.splitting import TEST, TRAIN, cut, numbered

# train-images-idx3-ubyte, t10k-labels.idx1-ubyte.gz, emnist-letters-test-images-idx3-ubyte.gz
_NAME = re.compile(
    r"(?P<set>.*?)-?(?P<part>train|t10k|test)-(?P<what>images|labels)[-.]idx[13]-ubyte(\.gz)?"
)
_PARTS = {"train": TRAIN, "t10k": TEST, "test": TEST}
_MAGIC = {"labels": 0x801, "images": 0x803}
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_GZIP = b"\x1f\x8b"


class _Key(NamedTuple):
    part: int
    what: str


def mnist(path: str | os.PathLike[str]) -> Splits:
    """Reads the four files of an MNIST-like data set, plain or gzipped.

    Images are uint8 ``[1, H, W]``; classes are the labels that occur, in their order. The test
    files are the test part, and of the training files a part as large as a tenth of all images is
    cut for validation by a fixed permutation (seed 0). The images of EMNIST, which its files store
    transposed, are turned upright.

    Args:
        path: the folder of the files; where it holds several sets, as EMNIST's does, with the name
            of one at its end (``gzip/emnist-letters``).

    Raises:
        FileNotFoundError: no such folder, or one of the four files is not in it.
        ValueError: several sets; a file that is not IDX of unsigned bytes, is cut short or too
            long; images and labels of different number; training and test images of different size.

    Source: Y. LeCun, C. Cortes and C. Burges, the MNIST database, "File formats".
    """
    images: list[Bytes] = []
    labels: list[Bytes] = []
    given: list[int] = []
    name, files = _files(Path(path))
    for part in (TRAIN, TEST):
        file, of_labels = files[_Key(part, "images")], files[_Key(part, "labels")]
        pixels, numbers = _read(file, "images"), _read(of_labels, "labels")
        if len(pixels) != len(numbers):
            raise ValueError(
                f"{of_labels}: must hold {len(pixels)} labels, one for each image of {file.name}, "
                f"got {len(numbers)}"
            )
        if images and pixels.shape[1:] != images[0].shape[1:]:
            raise ValueError(
                f"{file}: images must be of {list(images[0].shape[1:])}, as those for training, "
                f"got {list(pixels.shape[1:])}"
            )
        images.append(pixels)
        labels.append(numbers)
        given += [part] * len(pixels)
    positions, classes = numbered(np.concatenate(labels).tolist())
    values = torch.from_numpy(np.concatenate(images)[:, None])
    if name.startswith("emnist"):
        values = values.mT.contiguous()
    whole = in_memory(values, positions, peak=255, classes=classes)
    return Splits(*(whole.subset(at) for at in cut(torch.tensor(given))))


def is_mnist(path: Path) -> bool:
    """Whether there are IDX files in this folder, or beside it with its name."""
    return bool(_found(path)) or path.name in _found(path.parent)


def _files(path: Path) -> tuple[str, dict[_Key, Path]]:
    """The name of the one set at ``path``, and its files."""
    sets = _found(path)
    if not path.is_dir():
        sets = {name: files for name, files in _found(path.parent).items() if name == path.name}
    if not sets:
        raise FileNotFoundError(f"{path}: no IDX files such as train-images-idx3-ubyte.gz")
    if len(sets) > 1:
        raise ValueError(
            f"{path} holds the sets {', '.join(sorted(sets))}: name one, as {path / min(sets)}"
        )
    ((name, files),) = sets.items()
    for part in ("train", "t10k"):
        for what in _MAGIC:
            if _Key(_PARTS[part], what) not in files:
                raise FileNotFoundError(
                    f"{path}: must hold four IDX files, {part}-{what} is not among "
                    f"{', '.join(sorted(file.name for file in files.values()))}"
                )
    return name, files


def _found(folder: Path) -> dict[str, dict[_Key, Path]]:
    """The IDX files of a folder by the name of their set; MNIST's own has an empty name."""
    sets: dict[str, dict[_Key, Path]] = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _NAME.fullmatch(file.name)
        if match:
            key = _Key(_PARTS[match["part"]], match["what"])
            sets.setdefault(match["set"], {}).setdefault(key, file)
    return sets


def _read(file: Path, what: str) -> Bytes:
    """The array of an IDX file: big-endian magic and sizes, then one byte for each value."""
    content = file.read_bytes()
    if content[:2] == _GZIP:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file}: not a whole gzip file ({error})") from error
    magic = int.from_bytes(content[:4], "big")
    if len(content) < 4 or magic != _MAGIC[what]:
        raise ValueError(
            f"{file}: must begin with the magic number {_MAGIC[what]:#x} of IDX {what}, "
            f"got {content[:4].hex() or 'an empty file'}"
        )
    axes = magic & 0xFF
    start = 4 + 4 * axes
    if len(content) < start:
        raise ValueError(f"{file}: must have a header of {start} bytes, got {len(content)}")
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    expected = start + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise ValueError(
            f"{file}: must be {expected} bytes to hold {shape} of them, got {len(content)}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
