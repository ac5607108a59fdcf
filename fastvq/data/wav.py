# SPDX-License-Identifier: Apache-2.0
"""One WAV file as mono samples, at its own rate or another.

`scipy.io.wavfile` parses the chunks: it reads every integer width, 24 bits included, floats and
WAVE_FORMAT_EXTENSIBLE, which the standard library's `wave` does not. What it lets pass is a file
cut short, so that is checked here.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastvq.data.muting import MUTED

Samples = np.ndarray[Any, np.dtype[np.float64]]


class Recording(NamedTuple):
    """A mono signal.

    Attributes:
        samples: float64 ``[n]``; integer formats fill [-1, 1), floats are as they are in the file.
        rate: samples per second.
    """

    samples: Samples
    rate: int


def read_wav(file: Path) -> Recording:
    """Reads PCM of 8 (unsigned), 16, 24 or 32 bits or floats of 32 or 64, channels averaged.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is no WAV file, of another format, cut short, empty, or not finite.
    """
    from scipy.io import wavfile

    _check_whole(file)
    try:
        with MUTED:
            rate, values = wavfile.read(file)
    except (UnboundLocalError, ZeroDivisionError, struct.error) as error:
        raise ValueError("must hold a format and data, got a WAV file without them") from error
    if rate < 1:
        raise ValueError(f"sample rate must be at least 1, got {rate}")
    if len(values) == 0:
        raise ValueError("must hold samples, got none")
    samples = _scaled(values)
    if not np.isfinite(samples).all():
        raise ValueError("samples must be finite, got NaN or infinity")
    return Recording(samples if samples.ndim == 1 else samples.mean(axis=1), int(rate))


def resampled(recording: Recording, rate: int) -> Recording:
    """The recording at another rate, by `scipy.signal.resample_poly` (polyphase, Kaiser window)."""
    from scipy.signal import resample_poly

    if recording.rate == rate:
        return recording
    shared = math.gcd(recording.rate, rate)
    samples = resample_poly(recording.samples, rate // shared, recording.rate // shared)
    return Recording(samples, rate)


def _check_whole(file: Path) -> None:
    """Compares the length that the header claims with that of the file."""
    with file.open("rb") as opened:
        head = opened.read(8)
    if len(head) < 8 or head[:4] not in (b"RIFF", b"RIFX"):
        return  # wavfile has words for what is no WAV file, and RF64 keeps its length elsewhere
    claimed = 8 + int.from_bytes(head[4:], "little" if head[:4] == b"RIFF" else "big")
    size = file.stat().st_size
    # some writers count the pad byte of an odd chunk and do not write it
    if size < claimed - 1:
        raise ValueError(f"cut short: must be {claimed} bytes by its header, got {size}")


def _scaled(values: np.ndarray[Any, np.dtype[Any]]) -> Samples:
    """Integers to [-1, 1); wavfile gives 24 bits as the upper ones of an int32."""
    if values.dtype.kind == "f":
        return values.astype(np.float64)
    middle = 128 if values.dtype.kind == "u" else 0
    return (values.astype(np.float64) - middle) / 2.0 ** (8 * values.dtype.itemsize - 1)
