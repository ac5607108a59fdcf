# SPDX-License-Identifier: Apache-2.0
"""From the name of a data set to its splits; what the command line calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fastvq import _checks
from fastvq.data.digits import digits
from fastvq.data.examples import Splits
from fastvq.data.files import UNREADABLE
from fastvq.data.folders import folder

DIGITS = "digits"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, and how they are read.

    Attributes:
        source: ``"digits"``, or the path of a folder of images.
        image_size: pixels per side after resizing and cropping (folders); ``None`` keeps the size.
        channels: 1 for grey, 3 for RGB (folders; the digits are grey).
        unreadable: ``"refuse"`` or ``"skip"`` images that cannot be decoded (folders).
    """

    source: str = DIGITS
    image_size: int | None = None
    channels: int = 3
    unreadable: str = "refuse"

    def __post_init__(self) -> None:
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        _checks.one_of("unreadable", self.unreadable, UNREADABLE)
        if self.image_size is not None:
            _checks.positive("image_size", self.image_size)


def load(config: DataConfig, *, multiple: int = 1, report: Callable[[str], None] = print) -> Splits:
    """Reads the images that ``config`` names, their sizes padded to a multiple.

    Args:
        config: the source and how to read it.
        multiple: what height and width must be a multiple of: the stride of the model. Images are
            padded below and at the right by repeating their last row and column.
        report: takes the lines about padding and skipped images.

    Raises:
        FileNotFoundError, ValueError: as `fastvq.data.folder`.
    """
    if config.source == DIGITS:
        splits = digits()
    else:
        splits = folder(
            config.source,
            image_size=config.image_size,
            channels=config.channels,
            unreadable=config.unreadable,
            report=report,
        )
    padded = Splits(*(part.padded(multiple) for part in splits))
    size, padding = padded.train.size, padded.train.padding
    if any(padding):
        report(
            f"images of {_times(size)} are padded to "
            f"{_times(n + more for n, more in zip(size, padding, strict=True))}, "
            f"a multiple of {multiple}"
        )
    return padded


def _times(size: Iterable[int]) -> str:
    return "x".join(map(str, size))
