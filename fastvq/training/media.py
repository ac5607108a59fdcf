# SPDX-License-Identifier: Apache-2.0
"""Data as files that a person can open: pictures, WAV files, moving pictures.

Images become one PNG, video one GIF, sounds a folder of WAV files with a picture of their waves.
Other signals, which nobody can listen to, become the picture alone.
"""

from __future__ import annotations

import os
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastvq import _files
from fastvq.data import mu_law_decode
from fastvq.training import pictures

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = {"image": ".png", "video": ".gif", "audio": "", "signal": ".png"}
PLURALS = {"image": "images", "video": "clips", "audio": "sounds", "signal": "signals"}
_COLUMNS = 16
# frames per second of clips whose own rate is unknown
_FRAME_RATE = 8.0
WAVES_NAME = "waves.png"


def save_examples(
    data: Tensor,
    kind: str,
    path: str | os.PathLike[str],
    *,
    rate: float | None = None,
    columns: int = _COLUMNS,
    row_names: Sequence[str] = (),
) -> None:
    """Writes data in the form of its kind.

    Args:
        data: ``[N, C, *size]`` in [0, 1].
        kind: ``"image"``, ``"video"``, ``"audio"`` (mu-law levels) or ``"signal"``.
        path: the PNG or GIF, or the folder of the WAV files.
        rate: samples or frames per second.
        columns: examples in a row of a picture.
        row_names: of the rows of a picture.
    """
    if kind == "image":
        grid = pictures.image_grid(data, min(columns, len(data)), row_names=row_names)
        pictures.save_picture(grid, path)
    elif kind == "video":
        save_clips(data, path, rate=rate, columns=columns, row_names=row_names)
    elif kind == "signal":
        pictures.waves([data], [""], path)
    else:
        names = [f"{index:04d}" for index in range(len(data))]
        save_sounds(data, names, path, rate=rate)
        pictures.waves([sound(data)], [""], Path(path) / WAVES_NAME)


def save_each(
    data: Tensor,
    names: Sequence[str],
    kind: str,
    folder: str | os.PathLike[str],
    *,
    rate: float | None = None,
) -> None:
    """Writes a file for each example: an image or a clip in its own size, a sound.

    Args:
        data: ``[N, C, *size]`` in [0, 1].
        names: of the files, without suffix.
        kind: see `save_examples`; of a ``"signal"``, which no other program reads, it is ``.npy``.
        folder: made where it is absent.
        rate: samples or frames per second.
    """
    if kind == "audio":
        save_sounds(data, names, folder, rate=rate)
        return
    for name, example in zip(names, data, strict=True):
        path = Path(folder) / name
        if kind == "image":
            pictures.save_picture(pictures.to_images(example[None])[0], path.with_suffix(".png"))
        elif kind == "video":
            frames = pictures.to_images(example.movedim(1, 0))
            _save_gif(frames, path.with_suffix(".gif"), rate)
        else:
            target = path.with_suffix(".npy")
            with _files.replacing(target) as temporary, temporary.open("wb") as file:
                np.save(file, example.numpy())


def save_reconstructions(
    originals: Tensor,
    kept: Tensor,
    kind: str,
    path: str | os.PathLike[str],
    *,
    rate: float | None = None,
) -> None:
    """Writes data beside what the codes keep of it, in the form of its kind.

    Args:
        originals: ``[N, C, *size]`` in [0, 1].
        kept: the same shape.
        kind: see `save_examples`.
        path: the PNG or GIF, or the folder of the WAV files.
        rate: samples or frames per second.
    """
    names = ["original", "decoded"]
    if kind == "image":
        columns = min(_COLUMNS, len(originals))
        pictures.save_picture(pictures.reconstructions(originals, kept, columns), path)
    elif kind == "video":
        columns = min(_COLUMNS, len(originals))
        rows = [part for pair in zip(originals.split(columns), kept.split(columns), strict=True)
                for part in pair]  # fmt: skip
        full = [torch.cat([row, row.new_ones(columns - len(row), *row.shape[1:])]) for row in rows]
        row_names = names * (len(rows) // 2)
        save_clips(torch.cat(full), path, rate=rate, columns=columns, row_names=row_names)
    elif kind == "signal":
        pictures.waves([originals, kept], names, path)
    else:
        for name, sounds in zip(names, (originals, kept), strict=True):
            save_sounds(
                sounds, [f"{index:04d}-{name}" for index in range(len(sounds))], path, rate=rate
            )
        pictures.waves([sound(originals), sound(kept)], names, Path(path) / WAVES_NAME)


def sound(data: Tensor) -> Tensor:
    """Samples in [-1, 1] of mu-law levels shown as ``level / 255``."""
    return mu_law_decode((data * 255).round().clamp(0, 255).to(torch.uint8))


def save_sounds(
    data: Tensor,
    names: Sequence[str],
    folder: str | os.PathLike[str],
    *,
    rate: float | None,
) -> None:
    """Writes a mono 16-bit WAV file for each example, whole or not at all.

    Args:
        data: ``[N, 1, L]`` in [0, 1], mu-law levels.
        names: of the files, without suffix.
        folder: made where it is absent.
        rate: samples per second.

    Raises:
        ValueError: the rate is unknown or no whole number, or there is more than one channel.
    """
    if rate is None or rate != int(rate):
        raise ValueError(f"rate must be a whole number of samples per second, got {rate}")
    if data.shape[1] != 1:
        raise ValueError(f"sounds must have 1 channel, got {data.shape[1]}")
    samples = (sound(data)[:, 0] * 32767).round().to(torch.int16)
    for name, values in zip(names, samples, strict=True):
        target = Path(folder) / f"{name}.wav"
        with _files.replacing(target) as temporary, wave.open(str(temporary), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(int(rate))
            file.writeframes(values.numpy().astype("<i2").tobytes())


def save_clips(
    data: Tensor,
    path: str | os.PathLike[str],
    *,
    rate: float | None,
    columns: int,
    row_names: Sequence[str] = (),
) -> None:
    """Writes clips ``[N, C, T, H, W]`` in [0, 1] side by side into one GIF that repeats."""
    frames = [
        pictures.image_grid(frame, min(columns, len(data)), row_names=row_names)
        for frame in data.unbind(2)
    ]
    _save_gif(frames, path, rate)


def _save_gif(frames: list[Image], path: str | os.PathLike[str], rate: float | None) -> None:
    with _files.replacing(path) as temporary:
        frames[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=frames[1:],
            duration=round(1000 / (rate or _FRAME_RATE)),
            loop=0,
        )
