# SPDX-License-Identifier: Apache-2.0
"""Parts of a run in processes of their own: a crash or a hang costs one work, no more."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.gpu import (
    checks_device,
    checks_nearest,
    checks_ops,
    measurements,
    processes,
    tune,
)
from benchmarks.gpu.records import FAILED, STARTED, Journal, Record
from benchmarks.gpu.running import Clock, DeviceLost, Work, perform, shard
from benchmarks.gpu.setting import Setting

# for imports, and for a work that was begun in time
GRACE = 25
_RESTARTS = 20
_LOST = 3


class Section(NamedTuple):
    """A part of the run.

    Attributes:
        works: what it does.
        seconds: its share of the time.
        parallel: whether its works may run beside each other.
    """

    works: Callable[[Setting], Iterator[Work]]
    seconds: float
    parallel: bool


def correctness(setting: Setting) -> Iterator[Work]:
    """Every check; what a run cannot do without comes first, what takes longest last."""
    yield from checks_device.works(setting)
    yield from checks_ops.works(setting)
    yield from checks_nearest.works(setting)
    yield from checks_device.sanitizer_works(setting)


SECTIONS = {
    "correctness": Section(correctness, 170, True),
    "nearest": Section(measurements.search_works, 120, False),
    "statistics": Section(measurements.statistics_works, 45, False),
    "step": Section(measurements.step_works, 45, False),
}
TUNING = {
    "tune-compile": Section(tune.compile_works, 200, True),
    "tune": Section(tune.tune_works, 240, False),
}


def parts() -> int:
    """How many processes share the device where order and time do not count: they compile."""
    return max(1, min(16, (os.cpu_count() or 1) - 2))


class Order(NamedTuple):
    """What one worker is to do."""

    section: str
    device: str
    quick: bool
    part: int
    parts: int
    seconds: float
    journal: Path

    def command(self) -> list[str]:
        command = [sys.executable, "-m", "benchmarks.gpu", "--worker", self.section]
        command += ["--device", self.device, "--part", f"{self.part}/{self.parts}"]
        command += ["--seconds", f"{self.seconds:.1f}", "--journal", str(self.journal)]
        return command + ["--quick"] * self.quick


def work(order: Order) -> int:
    """In the worker: does its share; the exit status says whether the device was lost."""
    section = {**SECTIONS, **TUNING}[order.section]
    setting = Setting.of(order.device, quick=order.quick)
    works = shard(section.works(setting), order.part, order.parts)
    try:
        perform(order.section, works, Journal(order.journal), Clock(order.seconds))
    except DeviceLost:
        return _LOST
    return 0


def run(
    name: str, device: str, folder: Path, seconds: float, *, quick: bool, command: list[str] | None
) -> list[Record]:
    """Runs a section in its workers; ``command`` replaces theirs (in tests)."""
    count = parts() if {**SECTIONS, **TUNING}[name].parallel else 1
    orders = [
        Order(name, device, quick, part, count, seconds, folder / f"{name}-{part}.jsonl")
        for part in range(count)
    ]
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda order: _run_part(order, command or order.command()), orders))
    return [record for records in found for record in records]


def _run_part(order: Order, command: list[str]) -> list[Record]:
    journal, clock = Journal(order.journal), Clock(order.seconds)
    for _ in range(_RESTARTS):
        before = len(journal.read())
        status, said = processes.run(command, clock.left() + GRACE)
        fate = "was killed, its time was up" if status is None else f"died with status {status}"
        known = journal.read()
        for record in known.values():
            if record.status == STARTED:
                note = f"the process {fate}: {said[-600:]}"
                journal.write(Record(order.section, record.name, FAILED, note))
        if status == 0:
            break
        if len(known) == before:
            name = f"worker {order.part} of {order.parts}"
            note = f"{fate} without a result: {said[-2000:]}"
            journal.write(Record(order.section, name, FAILED, note))
            break
        if clock.left() <= 0:
            break
    return list(journal.read().values())
