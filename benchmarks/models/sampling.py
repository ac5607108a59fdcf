# SPDX-License-Identifier: Apache-2.0
"""Cached sampling against recomputing the whole prior at every position, in one process.

Recomputation of a large grid takes minutes, so it is timed at positions spread over the grid and
scaled to all of them: it costs the same everywhere. Both draw codes from the same random numbers;
the tests hold that they draw the same ones.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fastvq import priors
from fastvq.priors import Prior, RecomputeStepper, sample

BATCH = 16
_ROUNDS = 3
_SPREAD_POSITIONS = 16


class Case(NamedTuple):
    """A prior, the grid it is sampled at, and the ratio it has to reach."""

    name: str
    make: Callable[[], Prior]
    shape: tuple[int, ...]
    batch: int
    least: float | None


def _pixelcnn() -> Prior:
    return priors.GatedPixelCNN(priors.GatedPixelCNNConfig(512, channels=64, layers=12))


CASES = (
    Case("GatedPixelCNN, 12 layers x 64", _pixelcnn, (8, 8), BATCH, None),
    Case("GatedPixelCNN, 12 layers x 64", _pixelcnn, (16, 16), BATCH, 20),
    Case("GatedPixelCNN, 12 layers x 64", _pixelcnn, (32, 32), BATCH, 80),
    Case(
        "PixelSNAIL, 2 blocks x 2 layers x 64",
        lambda: priors.PixelSNAIL(priors.PixelSNAILConfig(512)),
        (16, 16),
        BATCH,
        8,
    ),
    Case(
        "Transformer, 4 layers",
        lambda: priors.Transformer(priors.TransformerConfig(512)),
        (16, 16),
        BATCH,
        None,
    ),
    Case(
        "WaveNet, 30 layers x 64, 256 levels",
        lambda: priors.WaveNet(priors.WaveNetConfig(256, layers=30, cycle=10)),
        (4096,),
        1,
        100,
    ),
    Case(
        "VideoPixelCNN",
        lambda: priors.VideoPixelCNN(priors.VideoPixelCNNConfig(512)),
        (8, 8, 8),
        4,
        None,
    ),
)


def measure(case: Case) -> dict[str, Any]:
    """Medians of both ways in seconds, and their ratio."""
    torch.manual_seed(0)
    prior = case.make().eval()
    cached = statistics.median(_cached(prior, case) for _ in range(_ROUNDS))
    whole = statistics.median(_recomputed(prior, case) for _ in range(_ROUNDS))
    positions = math.prod(case.shape)
    return {
        "prior": case.name,
        "shape": list(case.shape),
        "batch": case.batch,
        "cached_s": cached,
        "recomputed_s": whole,
        "recomputed_from_positions": min(_SPREAD_POSITIONS, positions),
        "ratio": whole / cached,
        "least": case.least,
        "us_per_code": cached / positions * 1e6,
    }


def _cached(prior: Prior, case: Case) -> float:
    started = time.perf_counter()
    sample(prior, case.shape, batch=case.batch, generator=torch.Generator().manual_seed(0))
    return time.perf_counter() - started


@torch.no_grad()
def _recomputed(prior: Prior, case: Case) -> float:
    """Seconds of all positions, from some of them."""
    positions = math.prod(case.shape)
    asked = min(_SPREAD_POSITIONS, positions)
    stepper = RecomputeStepper(prior, case.batch, case.shape)
    codes = torch.zeros(case.batch, dtype=torch.int64)
    step = positions // asked
    spent = 0.0
    for position in range(asked * step):
        if position % step == 0:
            started = time.perf_counter()
            stepper.logits()
            spent += time.perf_counter() - started
        stepper.append(codes)
    return spent / asked * positions


def run() -> dict[str, Any]:
    """The section."""
    return {"sampling": [measure(case) for case in CASES]}


def lines(found: dict[str, Any]) -> list[str]:
    """The section as lines of a table."""
    return [
        f"{row['prior']} at {'x'.join(map(str, row['shape']))}, batch {row['batch']}: "
        f"{row['ratio']:.0f} times" + (f" (at least {row['least']})" if row["least"] else "")
        for row in found["sampling"]
    ]
