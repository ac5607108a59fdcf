# SPDX-License-Identifier: Apache-2.0
"""Commands with a limit: past it the command goes, and all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from typing import NamedTuple

from benchmarks.gpu.records import ROOT


class Ended(NamedTuple):
    """How a command came to its end; ``status`` is ``None`` where its time was up."""

    status: int | None
    said: str


def run(command: list[str], seconds: float, **environment: str) -> Ended:
    """Runs a command in the checkout's root, with additions to the environment."""
    # a file, not a pipe: what the command started may hold a pipe open
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdout=output,
                stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            return Ended(127, str(error))
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        output.seek(0)
        return Ended(status, output.read().decode(errors="replace"))
