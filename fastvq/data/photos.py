# SPDX-License-Identifier: Apache-2.0
"""Seven photographs that come with scikit-learn and scikit-image: real images, no download."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data.decoding import Pixels, decode
from fastvq.data.examples import UNLABELLED, ExampleSet, Splits
from fastvq.data.folders import check_pixels

PHOTOS = (
    ("sklearn", "datasets/images/china.jpg"),
    ("sklearn", "datasets/images/flower.jpg"),
    ("skimage", "data/astronaut.png"),
    ("skimage", "data/chelsea.png"),
    ("skimage", "data/coffee.png"),
    ("skimage", "data/rocket.jpg"),
    ("skimage", "data/motorcycle_left.png"),
)
# how far apart training tiles begin, in pixels
STRIDE = 8


class Regions(NamedTuple):
    """The parts of one photo that share no pixel, from left to right: uint8 ``[C, H, w]``."""

    train: Pixels
    validation: Pixels
    test: Pixels


def photos(*, image_size: int = 32, channels: int = 3) -> Splits:
    """Square tiles of seven photos; the left three quarters of each train, the rest tests.

    **Regions.** A photo W pixels wide is ``n = W // S`` columns of tiles of S pixels, from the
    left. The first ``3n // 4`` columns are for training but for the last of them, which is the
    validation strip; the columns after them are for testing. No pixel is in two parts.

    **Tiles.** Training tiles begin at every 8th pixel and overlap, so crops are diverse; they are
    views of the photos in memory. Validation and test tiles do not overlap. With 32 pixels they are
    42,216 / 91 / 445. Tiles have no labels.

    Args:
        image_size: S, from 8 to 150: the smallest photo has three columns then.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ModuleNotFoundError: scikit-learn or scikit-image is absent (they come with the ``train``
            extra).

    Source: china and flower of scikit-learn; astronaut, chelsea, coffee, rocket and motorcycle
    (left) of scikit-image.
    """
    check_pixels(image_size, channels)
    _checks.fraction("image_size", image_size, low=STRIDE, high=151)
    regions = [tiled(photo, image_size) for photo in originals(channels)]
    strides = (STRIDE, image_size, image_size)
    return Splits(
        *(
            _tiles(list(part), image_size, stride)
            for part, stride in zip(zip(*regions, strict=True), strides, strict=True)
        )
    )


def tiled(photo: Pixels, size: int) -> Regions:
    """The regions of a photo by the rule of `photos`."""
    columns = photo.shape[2] // size
    test = 3 * columns // 4
    return Regions(
        photo[..., : (test - 1) * size],
        photo[..., (test - 1) * size : test * size],
        photo[..., test * size : columns * size],
    )


@functools.cache
def originals(channels: int) -> tuple[Pixels, ...]:
    """The photos, uint8 ``[C, H, W]``, in the order of `PHOTOS`."""
    return tuple(
        decode(package(name) / file, image_size=None, channels=channels) for name, file in PHOTOS
    )


def package(name: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        ModuleNotFoundError: it is absent.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return Path(spec.origin).parent


def _tiles(regions: list[Pixels], size: int, stride: int) -> ExampleSet:
    """All tiles of some regions, region by region and row by row."""
    views = [
        np.lib.stride_tricks.sliding_window_view(region, (size, size), axis=(1, 2))[
            :, ::stride, ::stride
        ]
        for region in regions
    ]
    places = [
        np.stack(np.unravel_index(np.arange(view[0, ..., 0, 0].size), view.shape[1:3]), axis=1)
        for view in views
    ]
    origin = np.concatenate(
        [np.insert(place, 0, region, axis=1) for region, place in enumerate(places)]
    )

    def read(at: Tensor) -> Tensor:
        tiles = [views[region][:, row, column] for region, row, column in origin[at.numpy()]]
        return torch.from_numpy(np.stack(tiles))

    return ExampleSet(
        kind="image",
        read=read,
        peak=255,
        channels=len(regions[0]),
        size=(size, size),
        labels=torch.full((len(origin),), UNLABELLED),
    )
