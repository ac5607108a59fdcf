# SPDX-License-Identifier: Apache-2.0
"""Models small enough for a test, of every kind."""

import pytest
import torch

from fastvq.models import VQVAE, VQVAE2, VQVAE2Config, VQVAEConfig

# narrower residual blocks are sometimes dead from the start: all of their few ReLUs at zero
NETWORK = {"hidden_channels": 8, "residual_channels": 16, "residual_blocks": 1}
QUANTIZERS = {
    "vq": {"codebook_size": 16, "codebook_dim": 4},
    "vq-gradient": {"codebook_size": 16, "codebook_dim": 4, "learning": "gradient"},
    "vq-grouped": {"codebook_size": 16, "codebook_dim": 6, "codebooks": 3},
    "residual": {"codebook_size": 8, "codebook_dim": 4, "codebooks": 2},
    "fsq": {"codebook_size": 60, "fsq_levels": (5, 4, 3)},
    "lfq": {"codebook_size": 16},
    "bsq": {"codebook_size": 16},
    "simvq": {"codebook_size": 16, "codebook_dim": 4},
}
LIKELIHOODS = {
    "mse": {},
    "softmax": {"likelihood": "softmax", "levels": 6},
    "logistic_mixture": {"likelihood": "logistic_mixture", "levels": 256, "mixtures": 2},
}


def make(kind="VQVAE", quantizer="vq", likelihood="mse", **options):
    """A tiny model; ``quantizer`` and ``likelihood`` are names of the tables above."""
    options = (
        NETWORK
        | {"quantizer": quantizer.split("-")[0]}
        | QUANTIZERS[quantizer]
        | LIKELIHOODS[likelihood]
        | options
    )
    if kind == "VQVAE":
        return VQVAE(VQVAEConfig(**options))
    return VQVAE2(VQVAE2Config(**({"strides": ((2,), (2,))} | options)))


def batch(model, *size, examples=4):
    """Data for a model: of its levels where it has some."""
    levels = model.config.levels or 256
    shape = (examples, model.config.in_channels, *size)
    return torch.randint(levels, shape) / (levels - 1)


def started(model, *size):
    """The model after one training pass, which starts codebooks from the data."""
    model(batch(model, *size, examples=8))
    return model


@pytest.fixture(params=["VQVAE", "VQVAE2"])
def kind(request):
    return request.param


@pytest.fixture(params=QUANTIZERS)
def quantizer(request):
    return request.param


@pytest.fixture(params=LIKELIHOODS)
def likelihood(request):
    return request.param
