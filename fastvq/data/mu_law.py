# SPDX-License-Identifier: Apache-2.0
"""Mu-law companding: sound as 256 levels, fine near silence and coarse where it is loud."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvq import _checks

MU = 255


def mu_law_encode(signal: Tensor) -> Tensor:
    """The level of each sample: uint8, of the shape of ``signal``.

    ``f(x) = sign(x) ln(1 + mu |x|) / ln(1 + mu)`` with mu = 255, then [-1, 1] in 256 levels at
    equal distances, the nearest of them; silence is level 128. Deterministic.

    Args:
        signal: floating point; values beyond [-1, 1] are clipped to it.

    Raises:
        TypeError: ``signal`` is not floating point.
        ValueError: it holds NaN.

    Source: the continuous formula of ITU-T G.711, as in A. van den Oord et al., WaveNet: A
    Generative Model for Raw Audio, 2016, section 2.2 (arXiv 1609.03499).
    """
    _checks.floating("signal", signal)
    # in float64, or a sample near the border of two levels would depend on the dtype it came in
    signal = signal.double().clamp(-1, 1)
    if signal.isnan().any():
        raise ValueError("signal must be numbers, got NaN")
    companded = signal.sign() * torch.log1p(MU * signal.abs()) / math.log1p(MU)
    return ((companded + 1) / 2 * MU + 0.5).floor().to(torch.uint8)


def mu_law_decode(levels: Tensor) -> Tensor:
    """The sample that each level stands for: float32 in [-1, 1], of the shape of ``levels``.

    The inverse of `mu_law_encode` up to rounding: every level decodes to a sample that encodes to
    it.

    Args:
        levels: integers in [0, 255].

    Raises:
        TypeError: ``levels`` are not integers.
        ValueError: one is out of range.
    """
    _checks.integers("levels", levels)
    levels = levels.long()
    if levels.numel() and not 0 <= int(levels.min()) <= int(levels.max()) <= MU:
        raise ValueError(
            f"levels must be in [0, {MU}], got [{int(levels.min())}, {int(levels.max())}]"
        )
    companded = 2 * levels.double() / MU - 1
    signal = companded.sign() * torch.expm1(companded.abs() * math.log1p(MU)) / MU
    return signal.float()
