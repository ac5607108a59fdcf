# SPDX-License-Identifier: Apache-2.0
"""How codes that nobody uses come back."""

from __future__ import annotations

from dataclasses import dataclass

from fastvq import _checks


@dataclass(frozen=True)
class Revival:
    """A dead code is replaced by a random vector of the current batch.

    A code is dead when the moving average of its count falls below ``threshold`` times the count
    that it would have if all codes were used alike. Being relative, the threshold means the same
    at every batch size and K. A revived code starts with that uniform count.

    Args:
        threshold: fraction of uniform use in (0, 1).

    Source: Dhariwal et al., Jukebox, 2005.00341, section 3.1 (random restarts).
    """

    threshold: float = 0.1

    def __post_init__(self) -> None:
        _checks.fraction("threshold", self.threshold)
        if self.threshold == 0:
            raise ValueError("threshold must be above 0; revival=None turns revival off")
