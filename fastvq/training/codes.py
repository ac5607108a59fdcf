# SPDX-License-Identifier: Apache-2.0
"""Files of codes: what a VQ-VAE made of a data set, and what a prior learns from."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks, _files, _pretrained
from fastvq.data import Splits
from fastvq.models import VQVAE
from fastvq.training import metrics
from fastvq.training.jitter import Jitter, jittered

FORMAT_VERSION = 1
SPLITS = Splits._fields
_KEYS = (
    "format_version",
    "codes",
    "labels",
    "split",
    "classes",
    "codebook_size",
    "image_size",
    "fingerprint",
)


@dataclass(frozen=True)
class Codes:
    """The codes of N images.

    Attributes:
        codes: int64 ``[N, h, w]``.
        labels: int64 ``[N]``, -1 for none.
        split: for each image its position in ``("train", "validation", "test")``, int64 ``[N]``.
        classes: names of the classes, empty without labels.
        codebook_size: K of the model.
        image_size: height and width of the images in pixels, without padding.
        fingerprint: of the model that made the codes; no other can decode them.
    """

    codes: Tensor
    labels: Tensor
    split: Tensor
    classes: tuple[str, ...]
    codebook_size: int
    image_size: tuple[int, int]
    fingerprint: str

    def __post_init__(self) -> None:
        if self.codes.ndim != 3 or len(self.codes) == 0:
            raise ValueError(f"codes must be [N, h, w], got {_checks.shape(self.codes)}")
        for name in ("labels", "split"):
            tensor = getattr(self, name)
            if tensor.shape != self.codes.shape[:1]:
                raise ValueError(
                    f"{name} must be [{len(self.codes)}], one per image, "
                    f"got {_checks.shape(tensor)}"
                )
        for name, tensor, low, high in (
            ("codes", self.codes, 0, self.codebook_size),
            ("labels", self.labels, *((0, len(self.classes)) if self.classes else (-1, 0))),
            ("split", self.split, 0, len(SPLITS)),
        ):
            smallest, largest = int(tensor.min()), int(tensor.max())
            if smallest < low or largest >= high:
                worst = smallest if smallest < low else largest
                raise ValueError(f"{name} must be in [{low}, {high}), got {worst}")

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width of the grid of codes."""
        return self.codes.shape[1], self.codes.shape[2]

    @property
    def num_classes(self) -> int | None:
        """Number of classes, ``None`` without labels."""
        return len(self.classes) or None

    def part(self, split: str) -> tuple[Tensor, Tensor]:
        """Codes ``[M, h, w]`` and labels ``[M]`` of one split."""
        _checks.one_of("split", split, SPLITS)
        chosen = self.split == SPLITS.index(split)
        return self.codes[chosen], self.labels[chosen]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an ``.npz`` of plain arrays, whole or not at all."""
        with _files.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(
                file,
                format_version=np.asarray(FORMAT_VERSION),
                codes=self.codes.to(torch.int32).numpy(),
                labels=self.labels.numpy(),
                split=np.asarray(SPLITS)[self.split.numpy()],
                classes=np.asarray(self.classes, dtype=np.str_),
                codebook_size=np.asarray(self.codebook_size),
                image_size=np.asarray(self.image_size),
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
        version = int(arrays["format_version"])
        if version != FORMAT_VERSION:
            raise ValueError(f"{path}: format_version must be {FORMAT_VERSION}, got {version}")
        names = {name: i for i, name in enumerate(SPLITS)}
        try:
            height, width = arrays["image_size"].tolist()
            return cls(
                codes=torch.from_numpy(arrays["codes"]).long(),
                labels=torch.from_numpy(arrays["labels"]).long(),
                split=torch.tensor([names[name] for name in arrays["split"].tolist()]),
                classes=tuple(arrays["classes"].tolist()),
                codebook_size=int(arrays["codebook_size"]),
                image_size=(height, width),
                fingerprint=str(arrays["fingerprint"]),
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path}: not a file of codes: {error}") from error

    def check_made_by(self, model: VQVAE) -> None:
        """Raises ``ValueError`` unless the codes were made by exactly this model."""
        check_fingerprint("codes", self.fingerprint, model)


def check_fingerprint(what: str, fingerprint: str, model: VQVAE) -> None:
    """Raises ``ValueError`` unless ``fingerprint`` is that of ``model``."""
    own = _pretrained.fingerprint(model)
    if fingerprint != own:
        raise ValueError(
            f"{what} must be of the model with fingerprint {own[:12]}, "
            f"got those of {fingerprint[:12]}: encode the data with this model first"
        )


def encode_splits(
    model: VQVAE, splits: Splits, *, copies: int = 0, jitter: Jitter | None = None, seed: int = 0
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
    grids = [metrics.encode_images(model, part) for part in splits if len(part)]
    if jitter is not None:
        generator = torch.Generator().manual_seed(seed)
        grids += [
            metrics.encode(model, jittered(batch, jitter, generator))
            for _ in range(copies)
            for batch in metrics.batches(splits.train)
        ]
    height, width = splits.train.size
    parts = [*enumerate(splits), *((0, splits.train) for _ in range(copies))]
    return Codes(
        codes=torch.cat(grids),
        labels=torch.cat([part.labels for _, part in parts]),
        split=torch.cat([torch.full((len(part),), index) for index, part in parts]),
        classes=splits.train.classes,
        codebook_size=model.config.codebook_size,
        image_size=(height, width),
        fingerprint=_pretrained.fingerprint(model),
    )


def _read_npz(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as npz:
            arrays = {name: npz[name] for name in npz.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a whole .npz file of codes ({error})") from error
    missing = [key for key in _KEYS if key not in arrays]
    if missing:
        raise ValueError(f"{path}: not a file of codes: it lacks {', '.join(missing)}")
    return arrays
