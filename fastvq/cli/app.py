# SPDX-License-Identifier: Apache-2.0
"""The ``fastvq`` command: its commands are in the modules beside this one."""

from __future__ import annotations

import sys

import typer

from fastvq.cli import demo, train, use

app = typer.Typer(
    name="fastvq",
    help="Train, measure and sample VQ-VAEs and their priors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("train")(train.train)
app.command("train-prior")(train.train_prior)
app.command("experiment")(train.experiment)
app.command("reconstruct")(use.reconstruct)
app.command("encode")(use.encode)
app.command("decode")(use.decode)
app.command("sample")(use.sample)
app.command("evaluate")(use.evaluate)
app.command("doctor")(demo.doctor)


def run() -> None:
    """Runs the command of ``sys.argv``; what a user got wrong is one line and exit status 2."""
    try:
        app()
    except (ValueError, TypeError, IndexError, OSError, ArithmeticError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
