# SPDX-License-Identifier: Apache-2.0
"""Two real one-dimensional signals without a download: an EEG and an ECG."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fastvq import _checks
from fastvq.data.examples import UNLABELLED, ExampleSet, Splits, in_memory
from fastvq.data.photos import package

# of the samples, in their order in time: training, then validation, then the last 20 % for testing
_BORDERS = (0.7, 0.8)
_OVERLAP = 8


def eeg(*, length: int = 32) -> Splits:
    """Windows of 4 electrodes at 80 samples per second, 800 samples in all (of matplotlib).

    Examples are ``[4, length]``. The first 70 % of the trace train, the next 10 % validate, the
    last 20 % test. Training windows begin at every ``length / 8``-th sample, the others do not
    overlap. Each electrode fills the 256 levels from its lowest to its highest value in the first
    80 %, linearly; what lies beyond in the rest is clipped.

    Args:
        length: samples of a window, at most 80, those of the validation part.

    Raises:
        ModuleNotFoundError: matplotlib is absent (it comes with the ``train`` extra).
    """
    file = package("matplotlib") / "mpl-data" / "sample_data" / "eeg.dat"
    # 10 seconds, as matplotlib's own example draws it
    return _windows(np.fromfile(file, "<f8").reshape(800, 4).T, length, rate=80.0)


def ecg(*, length: int = 32) -> Splits:
    """Windows of one lead of an ECG, 1024 samples in all (of PyWavelets), cut as `eeg`.

    Examples are ``[1, length]``; PyWavelets does not say at what rate they were sampled.

    Args:
        length: samples of a window, at most 103, those of the validation part.

    Raises:
        ModuleNotFoundError: PyWavelets is absent (it comes with no extra of this package).
    """
    with np.load(package("pywt") / "data" / "ecg.npz", allow_pickle=False) as archive:
        return _windows(archive["data"].astype(np.float64)[None], length, rate=None)


def _windows(
    signal: np.ndarray[Any, np.dtype[np.float64]], length: int, *, rate: float | None
) -> Splits:
    """Splits of a signal ``[C, n]`` in the order of time."""
    samples = signal.shape[1]
    validation, test = (round(border * samples) for border in _BORDERS)
    _checks.positive("length", length)
    if length > test - validation:
        raise ValueError(
            f"length must be at most {test - validation}, the samples of the validation part, "
            f"got {length}"
        )
    known = signal[:, :test]
    low, high = known.min(axis=1, keepdims=True), known.max(axis=1, keepdims=True)
    levels = np.rint(((signal - low) / (high - low)).clip(0, 1) * 255).astype(np.uint8)

    def windows(start: int, end: int, step: int) -> ExampleSet:
        values = torch.from_numpy(levels[:, start:end]).unfold(1, length, step).transpose(0, 1)
        labels = torch.full((len(values),), UNLABELLED)
        return in_memory(values, labels, peak=255, classes=(), rate=rate)

    return Splits(
        windows(0, validation, max(1, length // _OVERLAP)),
        windows(validation, test, length),
        windows(test, samples, length),
    )
