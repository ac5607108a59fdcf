# SPDX-License-Identifier: Apache-2.0
"""What a run found: one record a line while it runs, one document and one table at its end."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fastvq import _files

OK, FAILED, SKIPPED, STARTED = "ok", "FAILED", "skipped", "started"
PACKAGES = ("torch", "triton", "flash-kmeans", "vector-quantize-pytorch")
ROOT = Path(__file__).parents[2]
# of a message in the table; the document holds all of it
_WIDTH = 150


@dataclasses.dataclass(frozen=True)
class Record:
    """The outcome of one check or of one measurement.

    Attributes:
        section: the part of the run.
        name: what was looked at; unique in its section.
        status: ok, FAILED, skipped, or started while nothing else is known.
        note: why it failed or was skipped.
        figures: what was measured, with units in the names.
    """

    section: str
    name: str
    status: str
    note: str = ""
    figures: dict[str, float | None] = dataclasses.field(default_factory=dict)


class Journal:
    """A file of records, one a line: what is written survives the death of the writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Record) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(record)) + "\n")

    def read(self) -> dict[str, Record]:
        """The last record of each name, in the order in which they began."""
        found: dict[str, Record] = {}
        if self.path.exists():
            # a writer that was killed may leave half a line
            *lines, _ = self.path.read_text(encoding="utf-8").split("\n")
            for line in lines:
                record = Record(**json.loads(line))
                found[record.name] = record
        return found


def failed(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.status == FAILED]


def table(records: list[Record], *, colour: bool) -> Iterator[str]:
    """The lines of the table: figures first, then what was skipped and what failed, counts last."""
    for section in dict.fromkeys(record.section for record in records):
        mine = [record for record in records if record.section == section]
        good = sum(record.status == OK for record in mine)
        yield f"\n{section}: {good} ok of {len(mine)}"
        for record in sorted(mine, key=lambda record: record.status == FAILED):
            if record.status != OK or record.figures:
                yield _line(record, colour)
    bad = len(failed(records))
    yield f"\n{len(records)} lines, {bad} failed" + ("" if bad else ": all is well")


def _line(record: Record, colour: bool) -> str:
    figures = "  ".join(f"{name} {_number(value)}" for name, value in record.figures.items())
    note = " ".join(record.note.split())
    status = "" if record.status == OK else f"{record.status}: "
    text = f"  {record.name:<44} {figures}{status}{note[:_WIDTH]}"
    return f"\033[31m{text}\033[0m" if colour and record.status == FAILED else text


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def save(path: Path, device: dict[str, Any], records: list[Record], *, complete: bool) -> None:
    """Writes the document of a run, whole or not at all."""
    document = {
        "device": device,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "complete": complete,
        "records": [dataclasses.asdict(record) for record in records],
    }
    _files.write_json(path, document)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
