# SPDX-License-Identifier: Apache-2.0
"""Digits: squared error and samples of the demo, and the bits per pixel of a whole system."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.models.seeds import median, timed
from fastvq import training
from fastvq.data import DataConfig
from fastvq.models import VQVAEConfig
from fastvq.priors import GatedPixelCNNConfig
from fastvq.training import ModelTraining, PriorTraining, runs

# a decoder of 17 levels over few codes: what a code costs the prior, it must save the decoder
LIKELIHOOD_MODEL = VQVAEConfig(
    strides=(2, 2), likelihood="softmax", levels=17, commitment_weight=0.02
)
LIKELIHOOD_TRAINING = ModelTraining(steps=1200, rotate=8.0, zoom=0.1, shift=0.5)
PRIOR = GatedPixelCNNConfig(64, 10, dropout=0.1, code_dropout=0.1)
PRIOR_TRAINING = PriorTraining(steps=600)
_COPIES = 16


def squared_error(out: Path, seed: int) -> dict[str, Any]:
    """The demo with one seed: MSE of the test digits, and what a classifier makes of samples."""
    found = training.run_demo(out / f"demo-{seed}", seed=seed, report=_quiet)
    (level,) = found["levels"]
    return {
        "test_mse": found["test_mse"],
        "psnr": found["psnr"],
        "codes_used": level["codes_used"],
        "prior_bits_per_code": level["bits_per_code"]["prior"],
        "per_position_bits_per_code": level["bits_per_code"]["per_position"],
        "sample_accuracy": found["sample_accuracy"],
        "real_accuracy": found["real_accuracy"],
        "seconds": found["seconds"],
    }


def bits_per_dim(out: Path, seed: int) -> dict[str, Any]:
    """A softmax decoder and a class-conditional prior: a bound on bits per pixel of test digits."""

    def work() -> dict[str, Any]:
        run = out / f"likelihood-{seed}"
        how = dataclasses.replace(LIKELIHOOD_TRAINING, seed=seed)
        model = training.train_model(
            DataConfig(), LIKELIHOOD_MODEL, how, run, resume=True, report=_quiet
        )
        splits = training.load_data(run, model)
        codes = training.encode_splits(model, splits, copies=_COPIES, jitter=how, seed=seed)
        prior_how = dataclasses.replace(PRIOR_TRAINING, seed=seed)
        folder = runs.prior_folder(run, 0)
        prior = training.train_prior(codes, PRIOR, prior_how, folder, resume=True, report=_quiet)
        return training.evaluate(model, splits, "test", priors=[prior])["bits_per_dim"]

    return timed(work)


def run(out: Path, seeds: int) -> dict[str, Any]:
    """The section."""
    return {
        "digits_squared_error": median([squared_error(out, seed) for seed in range(seeds)]),
        "digits_bits_per_dim": median([bits_per_dim(out, seed) for seed in range(seeds)]),
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The section as lines of a table."""
    demo, bits = found["digits_squared_error"], found["digits_bits_per_dim"]
    return [
        f"digits, 4x4 x 64: test MSE {demo['test_mse']:.5f} (at most 0.0027), "
        f"{demo['codes_used']:.0f} of 64 codes, {demo['seconds']:.0f} s with the prior",
        f"digits: samples read as their class {demo['sample_accuracy']:.0%} (at least 80 %), "
        f"real digits {demo['real_accuracy']:.0%}",
        f"digits: {bits['prior']:.3f} bits per pixel (at most 2.0), of which the decoder "
        f"{bits['reconstruction']:.3f}; {bits['nominal']:.3f} without a prior",
    ]


def _quiet(_: str) -> None:
    """No progress in the table."""
