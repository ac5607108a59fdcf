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


class MetricsLog:
    """Appends lines to ``metrics.jsonl``; every line is on disk before the next step starts.

    Lines hold nothing that a clock has touched, so that a resumed run writes the same file as one
    that was never interrupted.

    Args:
        folder: the run.
        after: the step the run continues from: later lines, left by a run that was killed between
            its last checkpoint and its end, are dropped.
    """

    def __init__(self, folder: Path, *, after: int) -> None:
        self.path = folder / METRICS_NAME
        kept = [line for line in read_metrics(folder) if line["step"] <= after]
        with _files.replacing(self.path) as temporary:
            text = "".join(f"{json.dumps(line)}\n" for line in kept)
            temporary.write_text(text, encoding="utf-8")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Adds the line ``{"step": step, "split": split, **values}``."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a last line cut short by a kill is left out."""
    path = Path(folder) / METRICS_NAME
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0]
    return [json.loads(line) for line in whole.splitlines()]
