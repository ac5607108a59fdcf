# SPDX-License-Identifier: Apache-2.0
"""Sets of equally large images with labels, read batch by batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvq import _checks

UNLABELLED = -1
ALL = "all"


@dataclass(frozen=True)
class ImageSet:
    """N images of one size and, where there are any, their labels.

    Attributes:
        read: int64 ``[B]`` -> uint8 ``[B, C, H, W]``, the images at those positions.
        peak: the value of white; `batch` divides by it.
        channels: C, 1 for grey and 3 for RGB.
        height: H in pixels, before padding.
        width: W in pixels, before padding.
        labels: int64 ``[N]``, the class of each image, -1 for none.
        classes: the name of each class; empty without labels.
        padding: rows below and columns at the right that `batch` adds.
    """

    read: Callable[[Tensor], Tensor]
    peak: int
    channels: int
    height: int
    width: int
    labels: Tensor
    classes: tuple[str, ...] = ()
    padding: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, positions: Tensor) -> Tensor:
        """The images at ``positions`` (int64 ``[B]``): float32 ``[B, C, H, W]`` in [0, 1]."""
        images = self.read(positions).to(torch.float32) / self.peak
        below, right = self.padding
        if below or right:
            images = F.pad(images, (0, right, 0, below), mode="replicate")
        return images

    def subset(self, positions: Tensor) -> ImageSet:
        """The images at ``positions`` (int64 ``[M]``) as a set of their own, in that order."""
        read = self.read
        return dataclasses.replace(
            self, read=lambda inner: read(positions[inner]), labels=self.labels[positions]
        )

    def padded(self, multiple: int) -> ImageSet:
        """The set with both sizes brought up to a multiple, by repeating the last row and column.

        Raises:
            ValueError: ``multiple`` is below 1.
        """
        _checks.positive("multiple", multiple)
        padding = (-self.height % multiple, -self.width % multiple)
        return dataclasses.replace(self, padding=padding)


class Splits(NamedTuple):
    """A data set in three parts that share no image."""

    train: ImageSet
    validation: ImageSet
    test: ImageSet

    def part(self, name: str) -> ImageSet:
        """The part of that name; ``"all"`` is the three after one another.

        Raises:
            ValueError: another name, or a part without images.
        """
        _checks.one_of("split", name, (*self._fields, ALL))
        images = _joined(self) if name == ALL else getattr(self, name)
        if len(images) == 0:
            raise ValueError(f"the {name} split must hold at least one image, got none")
        return images


def in_memory(pixels: Tensor, labels: Tensor, *, peak: int, classes: tuple[str, ...]) -> ImageSet:
    """A set over uint8 ``pixels [N, C, H, W]`` held in memory."""
    _, channels, height, width = pixels.shape
    return ImageSet(lambda at: pixels[at], peak, channels, height, width, labels, classes)


def permutation(size: int) -> Tensor:
    """The one shuffle that every split uses: int64 ``[size]``, the same on every machine."""
    # numpy freezes the stream of RandomState for good, torch promises none across releases
    return torch.from_numpy(np.random.RandomState(0).permutation(size))


def _joined(parts: Splits) -> ImageSet:
    """One set of the images of all parts, in order."""
    starts = torch.tensor([0, len(parts.train), len(parts.train) + len(parts.validation)])

    def read(at: Tensor) -> Tensor:
        which = torch.bucketize(at, starts, right=True) - 1
        shape = parts.train.channels, parts.train.height, parts.train.width
        images = torch.empty(len(at), *shape, dtype=torch.uint8)
        for index, part in enumerate(parts):
            here = which == index
            images[here] = part.read(at[here] - starts[index])
        return images

    labels = torch.cat([part.labels for part in parts])
    return dataclasses.replace(parts.train, read=read, labels=labels)
