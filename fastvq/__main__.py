# SPDX-License-Identifier: Apache-2.0
"""``python -m fastvq`` is the ``fastvq`` command."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Runs the command line; without the ``train`` extra only ``fastvq doctor`` works."""
    if importlib.util.find_spec("typer") is not None:
        from fastvq.cli.app import run

        run()
        return
    if sys.argv[1:] == ["doctor"]:
        from fastvq.cli.doctor import diagnosis

        sys.stdout.write(diagnosis() + "\n")
        return
    sys.stderr.write(
        "fastvq: the command line needs the train extra, of which typer is not installed: "
        'pip install "fastvq[train]"\n'
        "python -m fastvq doctor works without it\n"
    )
    raise SystemExit(2)


if __name__ == "__main__":
    main()
