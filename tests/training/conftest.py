# SPDX-License-Identifier: Apache-2.0
"""Models small enough to train within a test."""

import dataclasses

import pytest

from fastvq import training
from fastvq.data import DataConfig
from fastvq.models import VQVAEConfig

MODEL = VQVAEConfig(hidden_channels=16, residual_channels=4, codebook_size=16, codebook_dim=4)
TRAINING = training.ModelTraining(
    steps=20,
    batch_size=32,
    learning_rate=0.02,
    log_every=4,
    validate_every=10,
    warmup_steps=2,
)


def silent(_: str) -> None:
    pass


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """The folder of a trained VQ-VAE, not to be written to."""
    folder = tmp_path_factory.mktemp("run")
    longer = dataclasses.replace(TRAINING, steps=80)
    training.train_model(DataConfig(), MODEL, longer, folder / "vqvae", report=silent)
    return folder / "vqvae"


@pytest.fixture(scope="session")
def model(run):
    return training.load_model(run)


@pytest.fixture(scope="session")
def codes(run, model):
    return training.encode_splits(model, training.load_data(run, model))
