# SPDX-License-Identifier: Apache-2.0
"""Seven photos, three quarters to learn from and the rest to test: one level against two."""

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
ONE_LEVEL = VQVAEConfig(
    in_channels=3,
    hidden_channels=96,
    strides=(2, 2),
    codebook_size=512,
    codebook_dim=16,
    decay=0.95,
)
# 7.2 bits for 4x4 and 7.2 for 8x8 pixels are the same
TWO_LEVELS = VQVAE2Config(
    in_channels=3,
    hidden_channels=96,
    strides=((2, 2), (2,)),
    codebook_size=147,
    codebook_dim=16,
    decay=0.95,
)
TRAINING = ModelTraining(
    steps=8000, batch_size=16, learning_rate=2e-3, precision="bfloat16", validate_every=1000
)


def measure(out: Path, name: str, model: ModelConfig, seed: int) -> dict[str, Any]:
    """One model with one seed."""

    def work() -> dict[str, Any]:
        run = out / f"{name}-{seed}"
        how = dataclasses.replace(TRAINING, seed=seed)
        source = DataConfig(source="photos")
        trained = training.train_model(source, model, how, run, report=_quiet)
        found = training.evaluate(trained, training.load_data(run, trained), "test")
        return {
            "psnr": found["psnr"],
            "mse": found["mse"],
            "nmse": found["nmse"],
            "bits_per_pixel": found["bits_per_pixel"]["nominal"],
            "codes_used": found["levels"][-1]["codes_used"],
        }

    return timed(work)


def run(out: Path, seeds: int) -> dict[str, Any]:
    """The section."""
    models = {"photos_one_level": ONE_LEVEL, "photos_two_levels": TWO_LEVELS}
    return {
        name: median([measure(out, name, model, seed) for seed in range(seeds)])
        for name, model in models.items()
    }


def lines(found: dict[str, Any]) -> list[str]:
    """The section as lines of a table."""
    names = {"photos_one_level": "VQ-VAE", "photos_two_levels": "VQ-VAE-2"}
    return [
        f"photos, {name}: {found[key]['psnr']:.2f} dB at {found[key]['bits_per_pixel']:.4f} bits "
        f"per pixel in {found[key]['seconds']:.0f} s"
        + (" (at least 27.5 in 600 s)" if key == "photos_one_level" else "")
        if key in found
        else f"photos, {name}: not measured"
        for key, name in names.items()
    ]


def _quiet(_: str) -> None:
    """No progress in the table."""
