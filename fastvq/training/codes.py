# SPDX-License-Identifier: Apache-2.0
"""Files of codes: what a VQ-VAE made of a data set, and what priors learn from."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks, _files, _pretrained
from fastvq.data import Splits
from fastvq.models import AutoEncoder, Coder
from fastvq.models.likelihoods import Discrete
from fastvq.training import metrics
from fastvq.training.jitter import Jitter, jittered

FORMAT_VERSION = 3
SPLITS = Splits._fields
_TENSORS = ("grids", "labels", "split")
_KEYS = (
    "format_version",
    "codes_0",
    "labels",
    "split",
    "classes",
    "codebook_sizes",
    "codebooks",
    "kind",
    "size",
    "rate",
    "fingerprint",
)


@dataclass(frozen=True)
class Codes:
    """The codes of N examples.

    Attributes:
        grids: int64 ``[N, *grid]`` of each level, the top first; with G codebooks
            ``[N, *grid, G]``.
        labels: int64 ``[N]``, -1 for none.
        split: for each example its position in ``("train", "validation", "test")``, int64 ``[N]``.
        classes: names of the classes, empty without labels.
        codebook_sizes: K of each level, the top first.
        codebooks: G of the model.
        kind: of the data, see `fastvq.data.ExampleSet`.
        size: of the data along its axes, without padding.
        rate: samples or frames per second, ``None`` where that is unknown.
        fingerprint: of the model that made the codes; no other can decode them.
    """

    grids: tuple[Tensor, ...]
    labels: Tensor
    split: Tensor
    classes: tuple[str, ...]
    codebook_sizes: tuple[int, ...]
    codebooks: int
    kind: str
    size: tuple[int, ...]
    rate: float | None
    fingerprint: str

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("grids must hold at least one level, got none")
        if len(self.codebook_sizes) != len(self.grids):
            raise ValueError(
                f"codebook_sizes must have {len(self.grids)} levels as grids has, "
                f"got {len(self.codebook_sizes)}"
            )
        if self.labels.ndim != 1 or self.split.shape != self.labels.shape:
            raise ValueError(
                f"labels and split must be [N], one per example, "
                f"got {_checks.shape(self.labels)} and {_checks.shape(self.split)}"
            )
        axes = len(self.size) + (self.codebooks > 1)
        for level, (grid, size) in enumerate(zip(self.grids, self.codebook_sizes, strict=True)):
            if grid.ndim != 1 + axes or len(grid) != len(self.labels) or not len(grid):
                raise ValueError(
                    f"codes of level {level} must be [N, ...] with {axes} axes more and "
                    f"N = {len(self.labels)}, at least 1, got {_checks.shape(grid)}"
                )
            _check_range(f"codes of level {level}", grid, 0, size)
        _check_range("labels", self.labels, *((0, len(self.classes)) if self.classes else (-1, 0)))
        _check_range("split", self.split, 0, len(SPLITS))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, ``None`` without labels."""
        return len(self.classes) or None

    def level(self, level: int) -> Tensor:
        """The codes of a level as priors take them, ``[N, *shape]``.

        The G codes of a position are neighbours along the last axis.

        Raises:
            ValueError: there is no such level.
        """
        if not 0 <= level < len(self.grids):
            raise ValueError(f"level must be in [0, {len(self.grids)}), got {level}")
        return flat(self.grids[level], self.codebooks)

    def part(self, split: str) -> Tensor:
        """Positions int64 ``[M]`` of the examples of one split."""
        _checks.one_of("split", split, SPLITS)
        return torch.nonzero(self.split == SPLITS.index(split)).flatten()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an ``.npz`` of plain arrays, whole or not at all."""
        grids: dict[str, Any] = {
            f"codes_{i}": grid.to(torch.int32).numpy() for i, grid in enumerate(self.grids)
        }
        with _files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                **grids,
                format_version=np.asarray(FORMAT_VERSION),
                labels=self.labels.numpy(),
                split=np.asarray(SPLITS)[self.split.numpy()],
                classes=np.asarray(self.classes, dtype=np.str_),
                codebook_sizes=np.asarray(self.codebook_sizes),
                codebooks=np.asarray(self.codebooks),
                kind=np.asarray(self.kind),
                size=np.asarray(self.size),
                rate=np.asarray(np.nan if self.rate is None else self.rate),
                fingerprint=np.asarray(self.fingerprint),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Codes:
        """Reads a file that `save` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: not a whole file of codes, another format version, values out of range.
        """
        arrays = _read_npz(Path(path))
        names = {name: i for i, name in enumerate(SPLITS)}
        levels = sum(name.startswith("codes_") for name in arrays)
        try:
            rate, sizes = float(arrays["rate"]), arrays["codebook_sizes"]
            if sizes.ndim != 1 or sizes.dtype.kind not in "iu":
                raise ValueError(
                    f"codebook_sizes must be integers [levels], got {sizes.dtype} "
                    f"{list(sizes.shape)}"
                )
            return cls(
                grids=tuple(torch.from_numpy(arrays[f"codes_{i}"]).long() for i in range(levels)),
                labels=torch.from_numpy(arrays["labels"]).long(),
                split=torch.tensor([names[name] for name in arrays["split"].tolist()]),
                classes=tuple(arrays["classes"].tolist()),
                codebook_sizes=tuple(sizes.tolist()),
                codebooks=int(arrays["codebooks"]),
                kind=str(arrays["kind"]),
                size=tuple(arrays["size"].tolist()),
                rate=None if np.isnan(rate) else rate,
                fingerprint=str(arrays["fingerprint"]),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a file of codes: {error}") from error

    def is_same(self, other: Codes) -> bool:
        """Whether all that `save` writes is the same."""
        ours, theirs = ((c.labels, c.split, *c.grids) for c in (self, other))
        plain = [field.name for field in fields(self) if field.name not in _TENSORS]
        return (
            len(ours) == len(theirs)
            and all(map(torch.equal, ours, theirs))
            and all(getattr(self, name) == getattr(other, name) for name in plain)
        )

    def check_made_by(self, model: Coder) -> None:
        """Raises ``ValueError`` unless the codes were made by exactly this model."""
        check_fingerprint("codes", self.fingerprint, model)


def flat(grid: Tensor, codebooks: int) -> Tensor:
    """``[N, *grid, G]`` as ``[N, *shape]``, the codes of a position neighbours on the last axis."""
    return grid if codebooks == 1 else grid.flatten(-2)


def unflat(codes: Tensor, codebooks: int) -> Tensor:
    """The inverse of `flat`."""
    return codes if codebooks == 1 else codes.unflatten(-1, (-1, codebooks))


def check_fingerprint(what: str, fingerprint: str, model: Coder) -> None:
    """Raises ``ValueError`` unless ``fingerprint`` is that of ``model``."""
    own = _pretrained.fingerprint(model)
    if fingerprint != own:
        raise ValueError(
            f"{what} must be of the model with fingerprint {own[:12]}, "
            f"got those of {fingerprint[:12]}: encode the data with this model first"
        )


def encode_splits(
    model: Coder,
    splits: Splits,
    *,
    copies: int = 0,
    jitter: Jitter | None = None,
    seed: int = 0,
) -> Codes:
    """The codes of a whole data set.

    Args:
        model: in eval mode.
        splits: padded to multiples of the model's stride.
        copies: how many times the training images are encoded once more, moved at random: a prior
            overfits a small data set, and this is the cheapest cure. They follow all others.
        jitter: how far they are moved.
        seed: of the random moves.

    Raises:
        ValueError: copies without a jitter that moves them would all be the same.
    """
    if copies and (jitter is None or not jitter.moves):
        raise ValueError(f"copies must be 0 where no jitter moves them, got {copies}")
    parts = [metrics.encode_examples(model, part) for part in splits if len(part)]
    if jitter is not None:
        generator = torch.Generator().manual_seed(seed)
        squared = isinstance(model, AutoEncoder) and not isinstance(model.likelihood, Discrete)
        peak = None if squared else splits.train.peak
        parts += [
            metrics.encode(model, jittered(batch, jitter, generator, peak=peak))
            for _ in range(copies)
            for _, batch in metrics.batches(splits.train)
        ]
    labelled = [*enumerate(splits), *((0, splits.train) for _ in range(copies))]
    return Codes(
        grids=metrics.joined(parts),
        labels=torch.cat([part.labels for _, part in labelled]),
        split=torch.cat([torch.full((len(part),), index) for index, part in labelled]),
        classes=splits.train.classes,
        codebook_sizes=model.level_codebook_sizes,
        codebooks=model.config.codebooks,
        kind=splits.train.kind,
        size=splits.train.size,
        rate=splits.train.rate,
        fingerprint=_pretrained.fingerprint(model),
    )


def _check_range(name: str, tensor: Tensor, low: int, high: int) -> None:
    smallest, largest = int(tensor.min()), int(tensor.max())
    if smallest < low or largest >= high:
        worst = smallest if smallest < low else largest
        raise ValueError(f"{name} must be in [{low}, {high}), got {worst}")


def _read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a whole .npz file of codes ({error})") from error
    # first, since another version may have other arrays
    version = arrays.get("format_version")
    if version is not None and not np.array_equal(version, FORMAT_VERSION):
        raise ValueError(
            f"{path}: format_version must be {FORMAT_VERSION}, got {version}: "
            "encode the data again with this version"
        )
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(f"{path}: not a file of codes: it lacks {', '.join(missing)}")
    return arrays
