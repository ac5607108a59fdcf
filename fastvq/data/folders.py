# SPDX-License-Identifier: Apache-2.0
"""A folder of images of the user's own: flat or in class subfolders, of any size and mode."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data.decoding import Pixels, decode
from fastvq.data.images import UNLABELLED, ImageSet, Splits, permutation

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)
UNREADABLE = ("refuse", "skip")
SPLIT_FOLDERS = {"train": 0, "validation": 1, "val": 1, "valid": 1, "test": 2}
# up to this many bytes of pixels stay in memory; beyond, files are decoded anew for each batch
MEMORY_BYTES = 4 * 2**30
# of a folder that does not say which images are for validation and which for testing
HELD_OUT = 0.1


def folder(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    channels: int = 3,
    unreadable: str = "refuse",
    report: Callable[[str], None] = print,
) -> Splits:
    """Reads every image under ``path``, recursively, and splits them.

    **Pixels.** Images are turned upright (EXIF), transparent ones laid on white, 16-bit ones scaled
    to 8 bits, and all brought to grey or RGB. With an ``image_size`` S the shorter side is resized
    to S (bicubic, antialiased) and the centre S x S kept; without one, all must be of one size.

    **Labels.** The class is the first subfolder, numbered in sorted order. When an image lies in no
    subfolder, none of them has a label.

    **Splits.** Subfolders ``train``, ``validation`` (or ``val``, ``valid``) and ``test`` are taken
    as they are, with the classes inside them. What they do not say is cut from the rest by a fixed
    permutation (seed 0) of the sorted paths: a tenth for validation and a tenth for testing, at
    least one image each. Of fewer than three images all are for training.

    Args:
        path: the folder; files whose suffix is no image's and hidden files are passed over.
        image_size: pixels per side after resizing and cropping, or ``None`` to keep the size.
        channels: 1 for grey, 3 for RGB.
        unreadable: ``"refuse"`` to raise on images that cannot be decoded, ``"skip"`` to leave
            them out; either way they are named and counted.
        report: takes the lines about skipped images.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: unreadable images under ``"refuse"``, or all of them under ``"skip"``; differing
            sizes without ``image_size``.
        ModuleNotFoundError: Pillow is absent (it comes with the ``train`` extra).
    """
    _checks.one_of("unreadable", unreadable, UNREADABLE)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if image_size is not None:
        _checks.positive("image_size", image_size)
    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    files = list(_image_files(root))
    if not files:
        raise FileNotFoundError(f"{root}: no image in this folder or below it")
    read, good, bad = _decode_all(root, files, image_size, channels)
    _handle_unreadable(root, bad, len(files), unreadable, report)
    parts, named = _split(good)
    labels, classes = _labels(named)
    size = read(torch.tensor([0])).shape
    whole = ImageSet(read, 255, size[1], size[2], size[3], labels, classes)
    return Splits(*(whole.subset(part) for part in parts))


def _image_files(root: Path) -> Iterator[Path]:
    """Paths relative to ``root``, sorted by their parts on every system alike."""
    found = []
    for at, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES:
                found.append((Path(at) / name).relative_to(root))
    yield from sorted(found, key=lambda file: file.parts)


def _decode_all(
    root: Path, files: list[Path], image_size: int | None, channels: int
) -> tuple[Callable[[Tensor], Tensor], list[Path], list[str]]:
    """Decodes every file once, so that a bad one is found before anything is trained.

    Returns the reader of the good files, these files, and a line about each bad one.
    """

    def attempt(file: Path) -> Pixels | str:
        try:
            return decode(root / file, image_size=image_size, channels=channels)
        # a corrupt file can raise anything from inside a decoder
        except Exception as error:
            return f"{file} ({type(error).__name__}: {error})"

    pixels: Pixels | None = None
    shape: tuple[int, ...] = ()
    good: list[Path] = []
    bad: list[str] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for file, result in zip(files, pool.map(attempt, files), strict=True):
            if isinstance(result, str):
                bad.append(result)
                continue
            shape = shape or result.shape
            if result.shape != shape:
                raise ValueError(
                    f"{root}: images must be of one size unless image_size is given: {good[0]} "
                    f"is {shape[2]}x{shape[1]}, {file} is {result.shape[2]}x{result.shape[1]}"
                )
            if pixels is None and len(files) * result.nbytes <= MEMORY_BYTES:
                pixels = np.empty((len(files), *shape), np.uint8)
            if pixels is not None:
                pixels[len(good)] = result
            good.append(file)

    if pixels is not None:
        held = torch.from_numpy(pixels[: len(good)])
        return lambda at: held[at], good, bad

    def read(at: Tensor) -> Tensor:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            images = pool.map(
                lambda i: decode(root / good[i], image_size=image_size, channels=channels),
                at.tolist(),
            )
            return torch.from_numpy(np.stack(list(images)))

    return read, good, bad


def _handle_unreadable(
    root: Path, bad: list[str], total: int, unreadable: str, report: Callable[[str], None]
) -> None:
    if not bad:
        return
    count = f"{root}: {len(bad)} of {total} images cannot be read"
    if unreadable == "refuse" or len(bad) == total:
        listed = "".join(f"\n  {line}" for line in bad)
        raise ValueError(f"{count} (unreadable = 'skip' leaves such images out):{listed}")
    report(f"{count} and are skipped:")
    for line in bad:
        report(f"  {line}")


def _labels(files: list[Path]) -> tuple[Tensor, tuple[str, ...]]:
    """The class of each file by its first subfolder; none when a file lies in no subfolder."""
    if any(len(file.parts) == 1 for file in files):
        return torch.full((len(files),), UNLABELLED), ()
    classes = tuple(sorted({file.parts[0] for file in files}))
    number = {name: i for i, name in enumerate(classes)}
    return torch.tensor([number[file.parts[0]] for file in files]), classes


def _split(files: list[Path]) -> tuple[list[Tensor], list[Path]]:
    """Positions of the train, validation and test images, and the paths that hold the classes."""
    given = all(len(f.parts) > 1 and f.parts[0] in SPLIT_FOLDERS for f in files)
    if given:
        part = torch.tensor([SPLIT_FOLDERS[f.parts[0]] for f in files])
        files = [Path(*f.parts[1:]) for f in files]
    else:
        part = torch.zeros(len(files), dtype=torch.int64)
    parts = [torch.nonzero(part == i).flatten() for i in range(3)]
    for missing in (1, 2):
        if len(parts[missing]) == 0 and len(files) >= len(parts):
            rest = parts[0][permutation(len(parts[0]))]
            held = max(1, round(HELD_OUT * len(files)))
            parts[missing], parts[0] = rest[:held], rest[held:].sort().values
    return parts, files
