# SPDX-License-Identifier: Apache-2.0
"""Medians over seeds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


def median(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of each figure, and the rows it is of under ``"seeds"``."""
    figures = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    return {**figures, "seeds": list(rows)}


def timed(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``work`` returns, with the ``seconds`` it took."""
    started = time.monotonic()
    return {**work(), "seconds": round(time.monotonic() - started, 1)}
