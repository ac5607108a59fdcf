# SPDX-License-Identifier: Apache-2.0
"""The examples of many sources: images, the chunks of recordings, the clips of videos."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from fastvq.data import files
from fastvq.data.examples import ExampleSet, Splits
from fastvq.data.splitting import cut

S = TypeVar("S")
Levels = np.ndarray[Any, np.dtype[np.uint8]]


class Pieces(Generic[S]):
    """Examples of one shape, in memory, or decoded anew where they are too many.

    Attributes:
        sources: what was added, a file or another name.
    """

    def __init__(self, what: str, decode: Callable[[S, int], Levels]) -> None:
        """``decode`` gives one piece of a source, uint8 ``[C, *size]``; ``what`` they all are."""
        self._what, self._decode = what, decode
        self._held: list[Levels] | None = []
        self._bytes = 0
        self._origin: list[tuple[S, int]] = []
        self._counts: list[int] = []
        self._shape: tuple[int, ...] = ()
        self.sources: list[S] = []

    def add(self, source: S, pieces: Levels) -> None:
        """Takes all pieces of a source: uint8 ``[k, C, *size]``, k above zero.

        Raises:
            ValueError: they are of another size than those before, or other channels.
        """
        self._shape = self._shape or pieces.shape[1:]
        if pieces.shape[1] != self._shape[0]:
            raise ValueError(
                f"{self._what} must be of {self._shape[0]} channels as {self.sources[0]}, "
                f"{source} is of {pieces.shape[1]}"
            )
        if pieces.shape[1:] != self._shape:
            raise ValueError(
                f"{self._what} must be of one size unless image_size is given: "
                f"{self.sources[0]} is {_size(self._shape)}, {source} is {_size(pieces.shape[1:])}"
            )
        self._origin += [(source, k) for k in range(len(pieces))]
        self._counts.append(len(pieces))
        self.sources.append(source)
        self._bytes += pieces.nbytes
        if self._bytes > files.MEMORY_BYTES:
            self._held = None
        if self._held is not None:
            self._held += list(pieces)

    def read(self, at: Tensor) -> Tensor:
        """The pieces at positions int64 ``[B]``: uint8 ``[B, C, *size]``."""
        if not len(at):
            return torch.empty(0, *self._shape, dtype=torch.uint8)
        if self._held is not None:
            return torch.from_numpy(np.stack([self._held[i] for i in at.tolist()]))
        origins = (self._origin[i] for i in at.tolist())
        decoded = files.side_by_side(lambda origin: self._decode(*origin), origins)
        return torch.from_numpy(np.stack(list(decoded)))

    def splits(
        self,
        kind: str,
        given: Tensor,
        labels: Tensor,
        classes: tuple[str, ...],
        *,
        rate: float | None = None,
    ) -> Splits:
        """All pieces, split by their sources: never two pieces of one source in two parts.

        Args:
            kind: see `ExampleSet`.
            given: the part of each source as far as it is known, for `fastvq.data.splitting.cut`.
            labels: the class of each source.
            classes: their names.
            rate: see `ExampleSet`.
        """
        counts = torch.tensor(self._counts)
        whole = ExampleSet(
            kind=kind,
            read=self.read,
            peak=255,
            channels=self._shape[0],
            size=self._shape[1:],
            labels=labels.repeat_interleave(counts),
            classes=classes,
            rate=rate,
        )
        starts = counts.cumsum(0) - counts

        def pieces_of(sources: Tensor) -> Tensor:
            own = counts[sources]
            shift = (starts[sources] - own.cumsum(0) + own).repeat_interleave(own)
            return shift + torch.arange(len(shift))

        return Splits(*(whole.subset(pieces_of(part)) for part in cut(given)))


def _size(shape: tuple[int, ...]) -> str:
    """``8x6`` of an image ``[C, H, W]`` that is 8 wide and 6 high."""
    return "x".join(map(str, reversed(shape[1:])))
