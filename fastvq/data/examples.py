# SPDX-License-Identifier: Apache-2.0
"""Sets of equally large examples with labels, read batch by batch: images, audio, video."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastvq import _checks

UNLABELLED = -1
ALL = "all"
# what a set holds -> along how many axes an example of it extends
AXES = {"signal": 1, "audio": 1, "image": 2, "video": 3}


@dataclass(frozen=True, kw_only=True)
class ExampleSet:
    """N images, pieces of audio or video clips of one size and, where there are any, their labels.

    Every example is a grid of integer levels 0 to `peak`, shown to models as level / peak. So every
    set has an exact discrete likelihood.

    Attributes:
        kind: ``"image"``, ``"video"``, ``"audio"`` (levels of `mu_law_encode`) or ``"signal"`` (any
            other function of time).
        read: int64 ``[B]`` -> uint8 ``[B, C, *size]``, the examples at those positions.
        peak: the highest level; `batch` divides by it.
        channels: C.
        size: ``(L,)`` of audio and signals, ``(H, W)`` of images, ``(T, H, W)`` of video, before
            padding.
        labels: int64 ``[N]``, the class of each example, -1 for none.
        classes: the name of each class; empty without labels.
        padding: samples that `batch` adds at the end of each axis; empty for none.
        rate: samples or frames per second, where that is known.
    """

    kind: str
    read: Callable[[Tensor], Tensor]
    peak: int
    channels: int
    size: tuple[int, ...]
    labels: Tensor
    classes: tuple[str, ...] = ()
    padding: tuple[int, ...] = ()
    rate: float | None = None

    def __post_init__(self) -> None:
        _checks.one_of("kind", self.kind, AXES)
        if len(self.size) != AXES[self.kind]:
            raise ValueError(
                f"size of {self.kind} must have {AXES[self.kind]} axes, got {list(self.size)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def levels(self) -> int:
        """How many levels a value may have: ``peak + 1``."""
        return self.peak + 1

    def batch(self, positions: Tensor) -> Tensor:
        """The examples at ``positions`` (int64 ``[B]``): float32 ``[B, C, *size]`` in [0, 1]."""
        examples = self.read(positions).to(torch.float32) / self.peak
        if any(self.padding):
            # F.pad wants the last axis first, and both ends of each
            ends = [end for added in reversed(self.padding) for end in (0, added)]
            examples = F.pad(examples, ends, mode="replicate")
        return examples

    def subset(self, positions: Tensor) -> ExampleSet:
        """The examples at ``positions`` (int64 ``[M]``) as a set of their own, in that order."""
        read = self.read
        return dataclasses.replace(
            self, read=lambda inner: read(positions[inner]), labels=self.labels[positions]
        )

    def padded(self, multiple: int | Sequence[int]) -> ExampleSet:
        """The set with every axis brought up to a multiple by repeating its last values.

        Args:
            multiple: one for all axes, or one for each.

        Raises:
            ValueError: a multiple below 1, or not one for each axis.
        """
        each = [multiple] * len(self.size) if isinstance(multiple, int) else list(multiple)
        if len(each) != len(self.size):
            raise ValueError(
                f"multiple must be an int or {len(self.size)} of them, one for each axis of "
                f"{self.kind}, got {each}"
            )
        for factor in each:
            _checks.positive("multiple", factor)
        padding = tuple(-n % factor for n, factor in zip(self.size, each, strict=True))
        return dataclasses.replace(self, padding=padding)


class Splits(NamedTuple):
    """A data set in three parts that share no example."""

    train: ExampleSet
    validation: ExampleSet
    test: ExampleSet

    def part(self, name: str) -> ExampleSet:
        """The part of that name; ``"all"`` is the three after one another.

        Raises:
            ValueError: another name, or a part without examples.
        """
        _checks.one_of("split", name, (*self._fields, ALL))
        examples = _joined(self) if name == ALL else getattr(self, name)
        if len(examples) == 0:
            raise ValueError(f"the {name} split must hold at least one example, got none")
        return examples


def in_memory(
    values: Tensor,
    labels: Tensor,
    *,
    peak: int,
    classes: tuple[str, ...],
    rate: float | None = None,
) -> ExampleSet:
    """A set over uint8 ``values [N, C, *size]`` held in memory; the axes of size tell its kind."""
    _, channels, *size = values.shape
    return ExampleSet(
        kind=next(kind for kind, axes in AXES.items() if axes == len(size)),
        read=lambda at: values[at],
        peak=peak,
        channels=channels,
        size=tuple(size),
        labels=labels,
        classes=classes,
        rate=rate,
    )


def permutation(size: int) -> Tensor:
    """The one shuffle that every split uses: int64 ``[size]``, the same on every machine."""
    # numpy freezes the stream of RandomState for good, torch promises none across releases
    return torch.from_numpy(np.random.RandomState(0).permutation(size))


def _joined(parts: Splits) -> ExampleSet:
    """One set of the examples of all parts, in order."""
    starts = torch.tensor([0, len(parts.train), len(parts.train) + len(parts.validation)])

    def read(at: Tensor) -> Tensor:
        which = torch.bucketize(at, starts, right=True) - 1
        shape = parts.train.channels, *parts.train.size
        examples = torch.empty(len(at), *shape, dtype=torch.uint8)
        for index, part in enumerate(parts):
            here = which == index
            examples[here] = part.read(at[here] - starts[index])
        return examples

    labels = torch.cat([part.labels for part in parts])
    return dataclasses.replace(parts.train, read=read, labels=labels)
