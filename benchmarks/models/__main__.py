# SPDX-License-Identifier: Apache-2.0
"""``python -m benchmarks.models``: trains, samples and measures every system; a table at the end.

Each seed is a run folder under ``--out``. A command that was stopped goes on where it was, and
tells the seconds of what was left; but of the folders ``demo-*`` an unfinished one, or one whose
section is asked for again, has to be removed first.
Runs are single-threaded, for a seed to give the same figures on any number of cores. The result
file keeps the sections that were not asked for.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastvq
from benchmarks import measure
from benchmarks.models import digits, photos, sampling, speech

RESULT = Path(__file__).parent.parent / "results" / "models.json"
SECTIONS = ("sampling", "digits", "photos", "hierarchy", "speech")
_LINES = {
    "sampling": sampling.lines,
    "digits": digits.lines,
    "photos": photos.lines,
    "hierarchy": photos.hierarchy_lines,
    "speech": speech.lines,
}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.models", description=__doc__)
    parser.add_argument("--only", choices=SECTIONS, action="append", help="may be repeated")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each model")
    parser.add_argument("--out", type=Path, default=Path("runs/models"), help="folder of the runs")
    parser.add_argument("--speech", type=Path, help="folder of spoken digits; see speech.py")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work: dict[str, Callable[[], dict[str, Any]]] = {
        "sampling": sampling.run,
        "digits": lambda: digits.run(arguments.out, arguments.seeds),
        "photos": lambda: photos.run(arguments.out, arguments.seeds),
        "hierarchy": lambda: photos.run_hierarchy(arguments.out, arguments.seeds),
    }
    if arguments.speech is not None:
        work["speech"] = lambda: speech.run(arguments.out, arguments.speech, arguments.seeds)
    for name in arguments.only or work:
        if name not in work:
            parser.error(f"--only {name} needs --{name} FOLDER")
        _keep(name, work[name]())
    document = json.loads(RESULT.read_text())
    for name, lines in _LINES.items():
        section = document["sections"].get(name)
        for line in lines(section["figures"]) if section else [f"{name}: not measured"]:
            print(line)


def _keep(name: str, figures: dict[str, Any]) -> None:
    """Writes a section into the result file, beside those that are there."""
    document = json.loads(RESULT.read_text()) if RESULT.exists() else {"sections": {}}
    document["sections"][name] = {
        "device": measure.device_name(),
        "versions": {
            "fastvq": fastvq.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "figures": figures,
    }
    temporary = RESULT.with_suffix(".json.new")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(RESULT)


if __name__ == "__main__":
    main()
