# SPDX-License-Identifier: Apache-2.0
"""``metrics.jsonl``: one JSON object a line, everything a run has measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvq import _files

METRICS_NAME = "metrics.jsonl"
BOARD_NAME = "tensorboard"


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; every line is on disk before the next step starts.

    Lines hold nothing that a clock has touched, so that a resumed run writes the same file as one
    that was never interrupted.

    Args:
        folder: the run.
        after: the step the run continues from: later lines, left by a run that was killed between
            its last checkpoint and its end, are dropped.
        enabled: whether this process writes at all.
        tensorboard: write the same for TensorBoard, into ``tensorboard/`` of the run.

    Raises:
        ModuleNotFoundError: TensorBoard is asked for and absent.
    """

    def __init__(
        self, folder: Path, *, after: int, enabled: bool = True, tensorboard: bool = False
    ) -> None:
        self.path = folder / METRICS_NAME
        self._enabled = enabled
        self._board = _board(folder, after) if enabled and tensorboard else None
        if not enabled:
            return
        kept = [line for line in read_metrics(folder) if line["step"] <= after]
        with _files.replacing(self.path) as temporary:
            text = "".join(f"{json.dumps(line)}\n" for line in kept)
            temporary.write_text(text, encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds the line ``{"step": step, "split": split, **values}``."""
        if not self._enabled:
            return
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{name}/{split}", value, step)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")

    def close(self) -> None:
        """Nothing more is written."""
        if self._board is not None:
            self._board.close()


def board_class() -> Any:
    """TensorBoard's writer.

    Raises:
        ModuleNotFoundError: TensorBoard is absent.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ModuleNotFoundError(
            f"training.tensorboard needs the package tensorboard: pip install tensorboard ({error})"
        ) from error
    return SummaryWriter


def _board(folder: Path, after: int) -> Any:
    # what a killed run left after its last checkpoint is hidden
    return board_class()(folder / BOARD_NAME, purge_step=after + 1)


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a last line cut short by a kill is left out."""
    path = Path(folder) / METRICS_NAME
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
