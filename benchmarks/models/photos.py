# SPDX-License-Identifier: Apache-2.0
"""Seven photos, three quarters to learn from, the rest to test: one level, and two against it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from benchmarks.models.seeds import median, timed
from fastvq import training
from fastvq.data import DataConfig
from fastvq.models import VQVAE2Config, VQVAEConfig
from fastvq.training import ModelTraining
from fastvq.training.kinds import ModelConfig

# 9 bits for 4x4 pixels are 0.5625 bits per pixel
MODEL = VQVAEConfig(
    in_channels=3,
    hidden_channels=96,
    strides=(2, 2),
    codebook_size=512,
    codebook_dim=16,
    decay=0.95,
)
TRAINING = ModelTraining(
    steps=8000, batch_size=16, learning_rate=2e-3, precision="bfloat16", validate_every=1000
)

# 4 bits for 4x4 pixels are 0.25 bits per pixel, and so are 3 for 4x4 and 4 for 8x8
ONE_LEVEL = dataclasses.replace(MODEL, codebook_size=16)
TWO_LEVELS = VQVAE2Config(
    in_channels=3,
    hidden_channels=96,
    strides=((2, 2), (2,)),
    codebook_sizes=(8, 16),
    codebook_dim=16,
    decay=0.95,
    # at 0.25 the top codes come late and, of two seeds in three, too late; one level, whose codes
    # do not, has the worse median of three at 0.05
    commitment_weight=0.05,
)
SHORT = ModelTraining(steps=1500, batch_size=8, learning_rate=2e-3, validate_every=500)


def measure(
    out: Path, name: str, model: ModelConfig, how: ModelTraining, seed: int
) -> dict[str, Any]:
    """One model with one seed."""

    def work() -> dict[str, Any]:
        run = out / f"{name}-{seed}"
        source = DataConfig(source="photos")
        seeded = dataclasses.replace(how, seed=seed)
        trained = training.train_model(source, model, seeded, run, resume=True, report=_quiet)
        found = training.evaluate(trained, training.load_data(run, trained), "test")
        return {
            "psnr": found["psnr"],
            "mse": found["mse"],
            "nmse": found["nmse"],
            "bits_per_pixel": found["bits_per_pixel"]["nominal"],
            "codes_used": found["levels"][-1]["codes_used"],
            "top_codes_used": found["levels"][0]["codes_used"],
        }

    return timed(work)


def run(out: Path, seeds: int) -> dict[str, Any]:
    """The section of the model at length."""
    rows = [measure(out, "photos", MODEL, TRAINING, seed) for seed in range(seeds)]
    return {"photos_one_level": median(rows)}


def run_hierarchy(out: Path, seeds: int) -> dict[str, Any]:
    """The section of one level against two, of a short training each."""
    models = {"one_level": ONE_LEVEL, "two_levels": TWO_LEVELS}
    return {
        name: median(
            [measure(out, f"hierarchy-{name}", model, SHORT, seed) for seed in range(seeds)]
        )
        for name, model in models.items()
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The section as lines of a table."""
    return [f"photos, {_line(found['photos_one_level'])} (at least 27.5 dB in 600 s)"]


def hierarchy_lines(found: dict[str, Any]) -> list[str]:
    """That of one level against two."""
    names = {"one_level": "VQ-VAE", "two_levels": "VQ-VAE-2"}
    return [f"photos, {name}: {_line(found[key])}" for key, name in names.items()]


def _line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['psnr']:.2f} dB at {figures['bits_per_pixel']:.4f} bits per pixel "
        f"in {figures['seconds']:.0f} s"
    )


def _quiet(_: str) -> None:
    """No progress in the table."""
