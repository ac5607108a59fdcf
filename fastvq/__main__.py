# SPDX-License-Identifier: Apache-2.0
"""``python -m fastvq`` is the ``fastvq`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line; without the ``train`` extra only ``fastvq doctor`` works."""
    try:
        from fastvq.cli.app import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("fastvq"):
            raise
        _without_extra(error.name)
    else:
        run()


def _without_extra(missing: str) -> None:
    if sys.argv[1:] == ["doctor"]:
        from fastvq.cli.doctor import diagnosis

        sys.stdout.write(diagnosis() + "\n")
        return
    sys.stderr.write(
        f"fastvq: the command line needs the train extra, of which {missing} is not installed: "
        'pip install "fastvq[train]"\n'
        "python -m fastvq doctor works without it\n"
    )
    raise SystemExit(2)


if __name__ == "__main__":
    main()
