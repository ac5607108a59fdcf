# SPDX-License-Identifier: Apache-2.0
"""Clips without a download: synthetic camera motion over real photographs, and one real GIF."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data.decoding import Pixels, decode_frames
from fastvq.data.examples import UNLABELLED, ExampleSet, Splits
from fastvq.data.folders import check_pixels
from fastvq.data.photos import originals, package

TRAIN, VALIDATION, TEST = 2048, 128, 256
# where the validation and the test region of a photo begin, as parts of its width
_BORDERS = (0.6, 0.75)
# the sides of what the camera sees, in pixels of the photo for each pixel of a frame
_ZOOM = (1.0, 2.0)


def clips(*, frames: int = 8, image_size: int = 32, channels: int = 3) -> Splits:
    """Synthetic camera motion: a window that pans and zooms over a photo, steadily in each clip.

    The scenes are the seven real photos of `fastvq.data.photos`; **the motion is synthetic**. Each
    clip goes in a straight line from one random window to another, squares of 1 to 2 photo pixels
    for each pixel of a frame, resampled bilinearly. What clip i shows follows from i alone.
    Windows of training clips lie in the left 60 % of a photo, of validation clips in the next 15 %,
    of test clips in the right quarter, so that no pixel is in two parts: 2048 / 128 / 256 clips,
    rendered when they are read. After them the training part holds what a real video of 24 frames
    gives (``no_time_for_that_tiny.gif`` of scikit-image, its centre enlarged from 14x14 pixels).

    Args:
        frames: T, frames of a clip.
        image_size: pixels per side, at most 66: the validation strip of the smallest photo.
        channels: 1 for grey, 3 for RGB.

    Raises:
        ModuleNotFoundError: scikit-learn or scikit-image is absent (they come with the ``train``
            extra).
    """
    _checks.positive("frames", frames)
    check_pixels(image_size, channels)
    _checks.fraction("image_size", image_size, low=1, high=67)
    photos = originals(channels)
    shape = (channels, frames, image_size, image_size)
    train = _Camera([p[..., : _border(p, 0)] for p in photos], shape, first=0)
    validation = _Camera(
        [p[..., _border(p, 0) : _border(p, 1)] for p in photos], shape, first=TRAIN
    )
    test = _Camera([p[..., _border(p, 1) :] for p in photos], shape, first=TRAIN + VALIDATION)
    real = _gif(frames, image_size, channels)

    def read(at: Tensor) -> Tensor:
        filmed = at >= TRAIN
        out = torch.empty(len(at), *shape, dtype=torch.uint8)
        out[~filmed] = train.read(at[~filmed])
        out[filmed] = real[at[filmed] - TRAIN]
        return out

    return Splits(
        _set(read, TRAIN + len(real), shape),
        _set(validation.read, VALIDATION, shape),
        _set(test.read, TEST, shape),
    )


class _Camera:
    """Clips of regions of photos; clip i is drawn with the seed ``first + i``."""

    def __init__(self, regions: list[Pixels], shape: tuple[int, ...], first: int) -> None:
        from PIL import Image

        self._regions = [
            Image.fromarray(r[0] if len(r) == 1 else np.ascontiguousarray(r.transpose(1, 2, 0)))
            for r in regions
        ]
        self._shape, self._first = shape, first

    def read(self, at: Tensor) -> Tensor:
        """Clips uint8 ``[B, C, T, S, S]``."""
        out = np.empty((len(at), *self._shape), np.uint8)
        for clip, position in zip(out, at.tolist(), strict=True):
            self._film(clip, np.random.RandomState(self._first + position))
        return torch.from_numpy(out)

    def _film(self, clip: Pixels, random: np.random.RandomState) -> None:
        from PIL.Image import Resampling

        channels, frames, size, _ = clip.shape
        region = self._regions[random.randint(len(self._regions))]
        widest = min(_ZOOM[1], min(region.size) / size)
        sides = size * random.uniform(_ZOOM[0], widest, size=2)  # at the start and at the end
        corners = random.uniform(size=(2, 2)) * (np.array(region.size) - sides[:, None])
        for t, progress in enumerate(np.linspace(0, 1, frames)):
            side = sides[0] + progress * (sides[1] - sides[0])
            left, top = corners[0] + progress * (corners[1] - corners[0])
            seen = (left, top, left + side, top + side)
            frame = region.resize((size, size), Resampling.BILINEAR, box=seen)
            clip[:, t] = np.asarray(frame).reshape(size, size, channels).transpose(2, 0, 1)


def _border(photo: Pixels, which: int) -> int:
    return int(_BORDERS[which] * photo.shape[2])


def _gif(frames: int, image_size: int, channels: int) -> Tensor:
    """The clips of the GIF that do not overlap: uint8 ``[k, C, T, S, S]``."""
    file = package("skimage") / "data" / "no_time_for_that_tiny.gif"
    whole = torch.from_numpy(decode_frames(file, image_size=image_size, channels=channels))
    count = len(whole) // frames
    return whole[: count * frames].unflatten(0, (count, frames)).transpose(1, 2)


def _set(read: Callable[[Tensor], Tensor], count: int, shape: tuple[int, ...]) -> ExampleSet:
    channels, *size = shape
    return ExampleSet(
        kind="video",
        read=read,
        peak=255,
        channels=channels,
        size=tuple(size),
        labels=torch.full((count,), UNLABELLED),
    )
