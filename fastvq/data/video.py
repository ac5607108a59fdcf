# SPDX-License-Identifier: Apache-2.0
"""A folder of videos without a codec: folders of frames, GIFs, arrays of numpy."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fastvq import _checks
from fastvq.data import arrays, files, folders
from fastvq.data.decoding import decode, decode_frames, pixels
from fastvq.data.examples import Splits
from fastvq.data.pieces import Levels, Pieces
from fastvq.data.splitting import labels_of, split_folders

MOVING = frozenset((".gif",))
STILL = folders.SUFFIXES - MOVING


def video_folder(
    path: str | os.PathLike[str],
    *,
    frames: int,
    frame_stride: int = 1,
    image_size: int | None = None,
    channels: int = 3,
    label_pattern: str | None = None,
    unreadable: str = "refuse",
    report: files.Report = print,
) -> Splits:
    """Reads every video under ``path``, recursively, cuts them to clips and splits them by video.

    **Videos.** A folder that holds images is one video, its frames sorted by name with numbers as
    numbers; so is a GIF, and a ``.npy`` or ``.npz`` of one array ``[T, H, W, C]`` or ``[T, H, W]``
    (uint8, or floats in [0, 1]). Frames become grey or RGB and of one size as the images of
    `fastvq.data.folder`.

    **Clips.** ``frames`` frames of which each is the ``frame_stride``-th after the one before. They
    do not overlap: one begins where the one before has ended. What does not fill a clip at the end
    of a video is left out, and videos shorter than a clip are named and left out.

    **Labels and splits.** As `fastvq.data.folder`, videos in the place of images: the class of a
    folder of frames is the first folder above it, and clips of one video are never in two parts.

    Args:
        path: the folder; other files and hidden ones are passed over.
        frames: frames of a clip.
        frame_stride: from one frame of a clip to the next.
        image_size: pixels per side after resizing and cropping, or ``None`` to keep the size.
        channels: 1 for grey, 3 for RGB.
        label_pattern: a regular expression that finds the class in the name of every video.
        unreadable: ``"refuse"`` or ``"skip"`` videos that cannot be decoded.
        report: takes the lines about videos left out and missing labels.

    Raises:
        FileNotFoundError: there is no such folder, or no video in it.
        ValueError: unreadable videos under ``"refuse"``, or all of them under ``"skip"``; differing
            sizes without ``image_size``; no video as long as a clip; a name in which
            ``label_pattern`` finds no class.
        ModuleNotFoundError: Pillow is absent (it comes with the ``train`` extra).
    """
    _checks.positive("frames", frames)
    _checks.positive("frame_stride", frame_stride)
    folders.check_pixels(image_size, channels)
    root = Path(path)
    inside = np.arange(frames) * frame_stride
    step = frames * frame_stride

    def decoded(video: Path, at: arrays.Array | None = None) -> Levels:
        return _frames(video, at, image_size=image_size, channels=channels)

    def piece(video: Path, k: int) -> Levels:
        return decoded(root / video, k * step + inside).swapaxes(0, 1)

    pieces = Pieces[Path](f"{root}: videos", piece)
    unread = files.Unreadable(root, "videos", unreadable, report)
    for video, whole in unread.decoded(_videos(root), decoded):
        count = max(0, (len(whole) - int(inside[-1]) - 1) // step + 1)
        if count == 0:
            report(
                f"{root / video} is left out: a clip needs {inside[-1] + 1} frames, "
                f"got {len(whole)}"
            )
            continue
        clips = whole[np.arange(count)[:, None] * step + inside]  # [k, T, C, H, W]
        pieces.add(video, clips.swapaxes(1, 2))
    if not pieces.sources:
        raise ValueError(f"{root}: no video holds a clip of {inside[-1] + 1} frames")
    given, named = split_folders(pieces.sources)
    return pieces.splits("video", given, *labels_of(named, label_pattern, report))


def _videos(root: Path) -> list[Path]:
    """Folders of frames, moving images and arrays, relative to ``root`` and sorted."""
    found = files.found(root, STILL | MOVING | arrays.SUFFIXES, "video")
    videos = {file.parent if file.suffix.lower() in STILL else file for file in found}
    return sorted(videos, key=lambda video: video.parts)


def _frames(
    video: Path, at: arrays.Array | None, *, image_size: int | None, channels: int
) -> Levels:
    """The frames of a video at some positions, or all: uint8 ``[T, C, H, W]``."""
    if video.is_dir():
        return _of_folder(video, at, image_size, channels)
    if video.suffix.lower() in MOVING:
        whole = decode_frames(video, image_size=image_size, channels=channels)
    else:
        whole = _of_array(video, image_size, channels)
    return whole if at is None else whole[at]


def _of_folder(
    video: Path, at: arrays.Array | None, image_size: int | None, channels: int
) -> Levels:
    stills = [file for file in video.iterdir() if file.suffix.lower() in STILL]
    stills = sorted((file for file in stills if not file.name.startswith(".")), key=files.natural)
    chosen = stills if at is None else [stills[i] for i in at]
    decoded = [decode(file, image_size=image_size, channels=channels) for file in chosen]
    for file, frame in zip(chosen, decoded, strict=True):
        if frame.shape != decoded[0].shape:
            raise ValueError(
                f"frames must be of one size unless image_size is given: {chosen[0].name} is "
                f"{_size(decoded[0].shape)}, {file.name} is {_size(frame.shape)}"
            )
    return np.stack(decoded)


def _of_array(video: Path, image_size: int | None, channels: int) -> Levels:
    from PIL import Image

    array = arrays.only_array(video)
    layout = "NHWC" if array.ndim == 4 else "NHW"
    read, of_array, _ = arrays.reader(str(video), array, layout)
    if of_array not in (1, 3):
        raise ValueError(f"must be [T, H, W, C] with 1 or 3 channels, got {list(array.shape)}")
    decoded = []
    for frame in read(torch.arange(len(array))).numpy():
        image = Image.fromarray(frame[0] if of_array == 1 else frame.transpose(1, 2, 0))
        decoded.append(pixels(image, image_size=image_size, channels=channels))
    return np.stack(decoded)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[2]}x{shape[1]}"
