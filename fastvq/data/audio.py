# SPDX-License-Identifier: Apache-2.0
"""A folder of recordings: WAV files cut to chunks of one length, as mu-law levels."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from fastvq import _checks
from fastvq.data import files
from fastvq.data.examples import Splits
from fastvq.data.mu_law import mu_law_encode
from fastvq.data.pieces import Levels, Pieces
from fastvq.data.splitting import labels_of, split_folders
from fastvq.data.wav import Recording, read_wav, resampled

SUFFIXES = frozenset((".wav", ".wave"))
TAILS = ("pad", "drop")
SILENCE = 128


def audio_folder(
    path: str | os.PathLike[str],
    *,
    length: int,
    sample_rate: int | None = None,
    tail: str = "pad",
    label_pattern: str | None = None,
    unreadable: str = "refuse",
    report: files.Report = print,
) -> Splits:
    r"""Reads every WAV file under ``path``, recursively, and splits them by file.

    **Samples.** PCM of 8, 16, 24 or 32 bits or floats, channels averaged to mono, resampled to
    ``sample_rate`` and made levels 0 to 255 by `fastvq.data.mu_law_encode`; what floats hold beyond
    [-1, 1] is clipped. Examples are ``[1, length]``, the chunks of each file in order.

    **Labels.** The class is the first subfolder, numbered in sorted order, or with a
    ``label_pattern`` its first group: ``r"^(\d)_"`` finds the 7 of ``7_jackson_12.wav``. When a
    file lies in no subfolder and there is no pattern, none of them has a label.

    **Splits.** As `fastvq.data.folder`, files in the place of images: chunks of one file are never
    in two parts.

    Args:
        path: the folder; files of another suffix and hidden files are passed over.
        length: samples of a chunk.
        sample_rate: samples per second, or ``None`` where all files have one rate.
        tail: ``"pad"`` to fill the last chunk of a file with silence (level 128), ``"drop"`` to
            leave out what does not fill one.
        label_pattern: a regular expression that finds the class in the name of every file.
        unreadable: ``"refuse"`` or ``"skip"`` files that cannot be decoded.
        report: takes the lines about skipped files and missing labels.

    Raises:
        FileNotFoundError: there is no such folder, or no WAV file in it.
        ValueError: unreadable files under ``"refuse"``, or all of them under ``"skip"``; differing
            rates without ``sample_rate``; no file as long as a chunk under ``"drop"``; a name in
            which ``label_pattern`` finds no class.
        ModuleNotFoundError: SciPy is absent (it comes with the ``train`` extra).
    """
    _checks.positive("length", length)
    _checks.one_of("tail", tail, TAILS)
    if sample_rate is not None:
        _checks.positive("sample_rate", sample_rate)
    root = Path(path)

    def decode(file: Path) -> tuple[Levels, int]:
        recording = read_wav(file)
        if sample_rate is not None:
            recording = resampled(recording, sample_rate)
        return chunks_of(recording, length, tail), recording.rate

    pieces = Pieces[Path](f"{root}: chunks", lambda file, k: decode(root / file)[0][k])
    unread = files.Unreadable(root, "WAV files", unreadable, report)
    rate = sample_rate
    for file, (chunks, of_file) in unread.decoded(files.found(root, SUFFIXES, "WAV file"), decode):
        rate = rate or of_file
        if of_file != rate:
            raise ValueError(
                f"{root / file}: its sample rate must be {rate}, that of the files before it, "
                f"got {of_file} (give a sample_rate to resample all)"
            )
        if len(chunks):
            pieces.add(file, chunks)
    if not pieces.sources:
        raise ValueError(
            f"{root}: no file holds a chunk of {length} samples (tail = 'pad' fills with silence)"
        )
    given, named = split_folders(pieces.sources)
    return pieces.splits("audio", given, *labels_of(named, label_pattern, report), rate=rate)


def chunks_of(recording: Recording, length: int, tail: str) -> Levels:
    """Levels uint8 ``[k, 1, length]`` of a recording."""
    levels = mu_law_encode(torch.from_numpy(recording.samples)).numpy()
    if tail == "drop":
        levels = levels[: len(levels) // length * length]
    levels = np.pad(levels, (0, -len(levels) % length), constant_values=SILENCE)
    return levels.reshape(-1, 1, length)
