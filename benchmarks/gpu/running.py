# SPDX-License-Identifier: Apache-2.0
"""Runs named pieces of work one by one, each on its own: none takes another along."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.records import FAILED, OK, SKIPPED, STARTED, Journal, Record


class Skip(Exception):
    """Raised by a piece of work that has nothing to do here; says why."""


class Work(NamedTuple):
    """A named piece of work; ``run()`` raises, or returns figures, or ``None``."""

    name: str
    run: Callable[[], dict[str, float | None] | None]


class Clock:
    """How much of a part's time is left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        return self.end - time.monotonic()


class DeviceLost(Exception):
    """The device answers nothing more in this process."""


def perform(section: str, works: Iterable[Work], journal: Journal, clock: Clock) -> None:
    """Does the works that the journal does not know yet, and writes down what became of each.

    Raises:
        DeviceLost: an error stuck to the device; the work is recorded, the rest has to run in
            another process.
    """
    known = journal.read()
    for work in works:
        if work.name in known:
            continue
        if clock.left() <= 0:
            journal.write(Record(section, work.name, SKIPPED, "left out: no time left"))
            continue
        journal.write(Record(section, work.name, STARTED))
        journal.write(outcome(section, work))
        if not _device_answers():
            raise DeviceLost(work.name)


def outcome(section: str, work: Work) -> Record:
    """Does one work; an exception of any kind becomes its record."""
    try:
        figures: Any = work.run()
    except Skip as reason:
        return Record(section, work.name, SKIPPED, str(reason))
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
        note = f"{type(error).__name__}: {error} ({place})"
        return Record(section, work.name, FAILED, note)
    return Record(section, work.name, OK, figures=figures or {})


def _device_answers() -> bool:
    if not torch.cuda.is_initialized():
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def shard(works: Iterable[Work], part: int, parts: int) -> Iterator[Work]:
    """Every ``parts``-th work, from ``part`` on."""
    for number, work in enumerate(works):
        if number % parts == part:
            yield work
