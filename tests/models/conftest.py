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
# what test_quantizers.py alone runs, once each
_LEVELS = {"codebook_size": 8, "codebook_dim": 4, "codebooks": 2}
FURTHER = {
    "grouped_residual": _LEVELS | {"codebooks": 6, "groups": 2},
    "projected_residual": _LEVELS | {"projected_dim": 2},
    "projected_residual-averages": _LEVELS | {"decay": 0.9},
    "qinco": _LEVELS,
    "residual_simvq": _LEVELS,
    "residual_fsq": {"codebook_size": 60, "fsq_levels": (5, 4, 3), "codebooks": 2},
    "residual_lfq": {"codebook_size": 16, "codebooks": 2},
    "ibq": {"codebook_size": 16, "codebook_dim": 4},
    "gumbel": {"codebook_size": 16, "codebook_dim": 4},
    "vq-rotation": {"codebook_size": 16, "codebook_dim": 4, "gradient": "rotation"},
    "vq-diveq": {"codebook_dim": 4, "learning": "gradient", "gradient": "diveq"},
    "residual-rotation": _LEVELS | {"gradient": "rotation"},
    "simvq-diveq": {"codebook_size": 16, "codebook_dim": 4, "gradient": "diveq"},
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
        | (QUANTIZERS | FURTHER)[quantizer]
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
