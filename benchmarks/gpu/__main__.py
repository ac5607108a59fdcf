# SPDX-License-Identifier: Apache-2.0
"""The command: parts of the run one after the other, one table last, one document kept."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import measure
from benchmarks.gpu import build, tune, workers
from benchmarks.gpu.records import FAILED, Record, failed, save, table
from benchmarks.gpu.running import Clock

TOTAL_SECONDS = 470
RESULTS = Path(__file__).parents[1] / "results"


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Builds, checks and measures fastvq on this GPU, within 8 minutes.",
    )
    parser.add_argument(
        "--only", choices=("build", *workers.SECTIONS), action="append",
        help="run this part alone; may be given several times",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="fewer checks and shapes")
    parser.add_argument(
        "--tune", action="store_true",
        help="time the alternatives to the rows of the search's table, print the best ones",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the document")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--part", default="0/1", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Exit status 0 where everything is right, 1 where a line is red, 2 where nothing can run."""
    options = arguments(argv)
    if options.worker:
        part, parts = map(int, options.part.split("/"))
        return workers.work(
            workers.Order(
                options.worker, options.device, options.quick, part, parts, options.seconds,
                options.journal,
            )
        )  # fmt: skip
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is visible: nothing to measure", file=sys.stderr)
        return 2
    device = describe(options.device)
    # a run of a part does not replace a whole one
    parts = ["tune"] if options.tune else options.only or []
    path = options.out / f"{'-'.join([measure.slug(device['name']), *parts])}.json"
    records = perform(options, device, path)
    for line in table(records, colour=sys.stdout.isatty()):
        print(line)
    if options.tune:
        print("\nrows for the table in fastvq/ops/nearest/_triton_tiling.py")
        print(*tune.winners(records), sep="\n")
    print(f"kept in {path}")
    return 1 if failed(records) else 0


def perform(options: argparse.Namespace, device: dict[str, Any], path: Path) -> list[Record]:
    """Runs the parts asked for; after each one the document holds what is known."""
    sections = workers.TUNING if options.tune else workers.SECTIONS
    wanted = ["build", *sections] if options.tune or not options.only else options.only
    clock, records = Clock(TOTAL_SECONDS), []
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            print(f"{name} ...", file=sys.stderr, flush=True)
            try:
                if name == "build":
                    records += build.build(120)
                else:
                    seconds = min(sections[name].seconds, clock.left())
                    records += workers.run(
                        name, options.device, Path(folder), seconds, quick=options.quick,
                        command=None,
                    )  # fmt: skip
            except Exception as error:
                note = f"{type(error).__name__}: {error}"
                records.append(Record(name, "the part itself", FAILED, note))
            save(path, device, records, complete=name == wanted[-1])
    return records


def describe(device: str) -> dict[str, Any]:
    """The device, for the document."""
    if device == "cpu":
        return {"name": f"interpreter on {measure.device_name()}"}
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "processors": found.multi_processor_count,
        "memory_GiB": found.total_memory / 2**30,
        "cuda": torch.version.cuda,
    }


if __name__ == "__main__":
    sys.exit(main())
