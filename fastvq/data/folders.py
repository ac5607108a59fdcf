# SPDX-License-Identifier: Apache-2.0
"""A folder of images of the user's own: flat or in class subfolders, of any size and mode."""

from __future__ import annotations

import os
from pathlib import Path

from fastvq import _checks
from fastvq.data import files
from fastvq.data.decoding import Pixels, decode
from fastvq.data.examples import Splits
from fastvq.data.pieces import Pieces
from fastvq.data.splitting import labels_of, split_folders

SUFFIXES = frozenset(
    (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
)


def folder(
    path: str | os.PathLike[str],
    *,
    image_size: int | None = None,
    channels: int = 3,
    label_pattern: str | None = None,
    unreadable: str = "refuse",
    report: files.Report = print,
) -> Splits:
    """Reads every image under ``path``, recursively, and splits them.

    **Pixels.** Images are turned upright (EXIF), transparent ones laid on white, 16-bit ones scaled
    to 8 bits, and all brought to grey or RGB. With an ``image_size`` S the shorter side is resized
    to S (bicubic, antialiased) and the centre S x S kept; without one, all must be of one size.

    **Labels.** The class is the first subfolder, numbered in sorted order. When an image lies in no
    subfolder, none of them has a label. With a ``label_pattern`` it is the pattern's first group.

    **Splits.** Subfolders ``train``, ``validation`` (or ``val``, ``valid``) and ``test`` are taken
    as they are, with the classes inside them. What they do not say is cut from the rest by a fixed
    permutation (seed 0) of the sorted paths: a tenth for validation and a tenth for testing, at
    least one image each. Of fewer than three images all are for training.

    Args:
        path: the folder; files whose suffix is no image's and hidden files are passed over.
        image_size: pixels per side after resizing and cropping, or ``None`` to keep the size.
        channels: 1 for grey, 3 for RGB.
        label_pattern: a regular expression that finds the class in the name of every file.
        unreadable: ``"refuse"`` to raise on images that cannot be decoded, ``"skip"`` to leave
            them out; either way they are named and counted.
        report: takes the lines about skipped images and missing labels.

    Raises:
        FileNotFoundError: there is no such folder, or no image in it.
        ValueError: unreadable images under ``"refuse"``, or all of them under ``"skip"``; differing
            sizes without ``image_size``; a name in which ``label_pattern`` finds no class.
        ModuleNotFoundError: Pillow is absent (it comes with the ``train`` extra).
    """
    check_pixels(image_size, channels)
    root = Path(path)

    def decoded(file: Path) -> Pixels:
        return decode(file, image_size=image_size, channels=channels)

    images = Pieces[Path](f"{root}: images", lambda file, _: decoded(root / file))
    unread = files.Unreadable(root, "images", unreadable, report)
    for file, pixels in unread.decoded(files.found(root, SUFFIXES, "image"), decoded):
        images.add(file, pixels[None])
    given, named = split_folders(images.sources)
    return images.splits("image", given, *labels_of(named, label_pattern, report))


def check_pixels(image_size: int | None, channels: int) -> None:
    """Raises unless images can be brought to this size and number of channels."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    if image_size is not None:
        _checks.positive("image_size", image_size)
