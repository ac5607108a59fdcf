"""One VQ-VAE, one seed, twenty steps, every backend: the same model comes out.

The budgets are absolute, for quantities of order one. Backends differ in the last bit of their
float32 sums (about 1e-7) and the optimizer carries that along; what was seen is written beside
each bound, which is about ten times that. Codes must not differ at all.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import fastvq
from fastvq import testing
from fastvq.models import VQVAE, VQVAEConfig
from fastvq.priors import GatedPixelCNN, GatedPixelCNNConfig

STEPS = 20
MODEL = VQVAEConfig(
    hidden_channels=16, residual_channels=8, residual_blocks=1, codebook_size=24, codebook_dim=8
)
PRIOR = GatedPixelCNNConfig(codebook_size=24, channels=8, layers=2)
LEARNING = ("ema", "gradient")


class Trained(NamedTuple):
    losses: Tensor  # [STEPS]
    codes: Tensor  # [STEPS, B, H, W]
    codebook: Tensor  # [K, D]
    gradients: dict[str, Tensor]
    weights: dict[str, Tensor]
    nll: Tensor  # [B, H, W]


def train(learning: str) -> Trained:
    torch.manual_seed(0)
    model = VQVAE(VQVAEConfig(**{**MODEL.__dict__, "learning": learning}))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses, codes = [], []
    for _ in range(STEPS):
        images = functional.interpolate(torch.rand(8, 1, 3, 3), size=8, mode="bilinear")
        optimizer.zero_grad()
        out = model(images)
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.detach())
        codes.append(out.indices)
    torch.manual_seed(1)
    prior = GatedPixelCNN(PRIOR).eval()
    with torch.no_grad():
        nll = prior.nll(codes[-1])
    return Trained(
        torch.stack(losses),
        torch.stack(codes),
        model.quantizer.codebook.detach().clone(),
        {name: p.grad for name, p in model.named_parameters()},
        {name: p.detach() for name, p in model.named_parameters()},
        nll,
    )


@pytest.fixture(scope="module")
def specified() -> dict[str, Trained]:
    """What the reference makes of it."""
    with fastvq.use_backend("reference"):
        return {learning: train(learning) for learning in LEARNING}


@pytest.mark.parametrize("learning", LEARNING)
def test_backends_train_the_same_model(backend, specified, learning):
    expected, actual = specified[learning], train(learning)
    assert expected.codes.unique().numel() > 8, "the codes of this test must not have collapsed"
    assert torch.equal(actual.codes, expected.codes)
    testing.assert_within(actual.losses, expected.losses.double(), 1e-6)
    testing.assert_within(actual.codebook, expected.codebook.double(), 1e-5)
    for name, gradient in expected.gradients.items():
        testing.assert_within(actual.gradients[name], gradient.double(), 1e-5)
    for name, weight in expected.weights.items():
        testing.assert_within(actual.weights[name], weight.double(), 1e-4)
    assert torch.equal(actual.nll, expected.nll)


def test_eval_bits_do_not_depend_on_training_mode_history(backend):
    torch.manual_seed(0)
    model = VQVAE(MODEL)
    images = torch.rand(4, 1, 8, 8)
    model(images)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model.decode(model.encode(images)), model(images).reconstruction)
