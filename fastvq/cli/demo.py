# SPDX-License-Identifier: Apache-2.0
"""``fastvq demo`` and ``fastvq doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastvq.cli.doctor import diagnosis
from fastvq.cli.options import report
from fastvq.training import demo as demonstration


def demo(
    out: Annotated[Path, typer.Option(help="Folder for pictures, report and runs.")],
    seed: Annotated[int, typer.Option(help="Of training and sampling.")] = 0,
    model_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the VQ-VAE.")
    ] = demonstration.MODEL_TRAINING.steps,
    prior_steps: Annotated[
        int, typer.Option(min=1, help="Steps of the prior, at most.")
    ] = demonstration.PRIOR_TRAINING.steps,
) -> None:
    """Train a VQ-VAE and its prior on real digits and write pictures and a report (minutes)."""
    found = demonstration.run_demo(
        out, seed=seed, model_steps=model_steps, prior_steps=prior_steps, report=report
    )
    print(demonstration.table(found))
    print(f"pictures and report: {out}")


def doctor() -> None:
    """Say what runs on this machine, and what is absent and why."""
    print(diagnosis())
