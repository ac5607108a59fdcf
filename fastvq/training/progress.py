# SPDX-License-Identifier: Apache-2.0
"""What a run shows while it goes on: means of its losses, a bar or lines."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor

Report = Callable[[str], None]


class Window:
    """Means of the losses since the last line; nothing waits for the device until it is taken."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, losses: dict[str, Tensor]) -> None:
        """Adds the 0-d losses of one step."""
        for name, loss in losses.items():
            value = loss.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means, and a fresh start."""
        means = {name: float(total) / self._count for name, total in self._sums.items()}
        self._sums, self._count = {}, 0
        return means


class Progress:
    """A bar on a terminal; elsewhere a line at each validation.

    Args:
        total: steps of the run.
        done: steps already taken.
        report: takes the lines.
        enabled: whether there is a bar at all.
    """

    def __init__(self, total: int, done: int, report: Report, *, enabled: bool = True) -> None:
        from tqdm import tqdm

        self._report = report
        self._terminal = enabled and sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, unit="step", disable=not self._terminal)
        self._step, self._total = done, total

    def step(self) -> None:
        """One step is done."""
        self._bar.update()
        self._step += 1

    def note(self, text: str, *, best: bool) -> None:
        """A validation is done."""
        text = f"{text} (best)" if best else text
        if self._terminal:
            self._bar.set_postfix_str(text)
        else:
            self._report(f"step {self._step}/{self._total}: {text}")

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()


class SamplingProgress:
    """A bar on a terminal over the positions that priors have drawn, nothing elsewhere.

    Args:
        total: positions of all grids.
    """

    def __init__(self, total: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="code", disable=not sys.stderr.isatty())

    def step(self, done: int, positions: int) -> None:
        """One position is done; the signature is that of `fastvq.priors.sampling.Progress`."""
        self._bar.update()

    def close(self) -> None:
        """Leaves the bar as it is."""
        self._bar.close()
