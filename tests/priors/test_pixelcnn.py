"""``GatedPixelCNN``: the shared contract, its likelihood, its reach, and what it refuses."""

import math
from typing import ClassVar

import pytest
import torch

from fastvq.priors import GatedPixelCNN, GatedPixelCNNConfig
from fastvq.testing.prior_contract import PriorContract

CODES = 7


def make(classes=None, **options):
    """A prior small enough to look at, with weights as large as training makes them."""
    options = {"channels": 8, "layers": 3, "kernel_size": 5, "label_dropout": 0.0} | options
    prior = GatedPixelCNN(GatedPixelCNNConfig(CODES, classes, **options))
    with torch.no_grad():
        prior.logits.weight.mul_(150)
        for layer in prior.layers:
            layer.vertical.weight.mul_(2)
            layer.horizontal.weight.mul_(2)
    return prior


class TestGatedPixelCNN(PriorContract):
    sampled_shapes = ((5, 9), (9, 5), (1, 4), (4, 1))
    variants: ClassVar = {
        "kernel-3": {"kernel_size": 3, "layers": 7},
        "kernel-5": {"kernel_size": 5, "layers": 3},
        "kernel-7": {"kernel_size": 7, "layers": 2},
    }
    shallow: ClassVar = {"kernel_size": 5, "layers": 1}

    def make(self, **fields):
        return make(fields.pop("num_classes", None), **fields)


@pytest.mark.parametrize(("kernel_size", "layers"), [(3, 1), (3, 2), (5, 1)])
def test_reach_is_exact(kernel_size, layers):
    """A shallow prior sees the earlier codes of a box of that radius, and all of them."""
    contract = TestGatedPixelCNN()
    contract.shapes = [(7, 11)]
    contract.shallow = {"kernel_size": kernel_size, "layers": layers}
    contract.test_reach_is_exact()


def test_likelihood_is_normalised():
    """The probabilities of all 3^4 grids of 2 x 2 add up to one."""
    prior = GatedPixelCNN(GatedPixelCNNConfig(3, channels=8, layers=2)).double().eval()
    grids = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 2, 2)
    with torch.no_grad():
        total = (-prior.nll(grids).sum((1, 2))).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_nll_of_uniform_logits_is_log_k():
    prior = GatedPixelCNN(GatedPixelCNNConfig(64)).eval()
    torch.nn.init.zeros_(prior.logits.weight)
    torch.nn.init.zeros_(prior.logits.bias)
    nll = prior.nll(torch.randint(64, (3, 4, 5)))
    assert nll.shape == (3, 4, 5)
    torch.testing.assert_close(nll, torch.full_like(nll, math.log(64)))


def test_a_fresh_prior_knows_nothing():
    """The first loss is within a twentieth of a nat of log K: no wild start to unlearn."""
    prior = GatedPixelCNN(GatedPixelCNNConfig(64, 10)).eval()
    codes, labels = torch.randint(64, (32, 4, 4)), torch.randint(10, (32,))
    assert prior.nll(codes, labels).mean().item() == pytest.approx(math.log(64), abs=0.05)


def test_nll_is_the_cross_entropy_of_the_logits():
    prior, codes = make(3).double().eval(), torch.randint(CODES, (4, 5, 9))
    labels = torch.randint(3, (4,))
    logits = prior(codes, labels)
    expected = -logits.log_softmax(-1).gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(prior.nll(codes, labels), expected)


def test_positions_matter():
    """With all codes equal, logits far from the border still know where they are."""
    flat = make(layers=1, kernel_size=3).eval()(torch.zeros(1, 8, 12, dtype=torch.int64))
    inside = flat[0, 3:, 3:-3].flatten(0, 1)
    assert torch.pdist(inside).min() > 1e-4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codebook_size": 0}, ValueError, "codebook_size must be at least 1, got 0"),
        ({"codebook_size": 8, "layers": 2.5}, TypeError, "layers must be an int, got float"),
        ({"codebook_size": 8, "num_classes": 0}, ValueError, "num_classes must be at least 1"),
        ({"codebook_size": 8, "kernel_size": 4}, ValueError, "odd and at least 3, got 4"),
        ({"codebook_size": 8, "kernel_size": 1}, ValueError, "odd and at least 3, got 1"),
        ({"codebook_size": 8, "dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1"),
        (
            {"codebook_size": 8, "context_channels": -1},
            ValueError,
            "context_channels must be at least 0, got -1",
        ),
    ],
)
def test_refuses_configs(options, error, message):
    with pytest.raises(error, match=message):
        GatedPixelCNNConfig(**options)


@pytest.mark.parametrize("device", ["cuda"])
def test_gpu_gives_the_same_logits(device):
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    prior = make(3).eval()
    codes, labels = torch.randint(CODES, (4, 5, 9)), torch.randint(3, (4,))
    expected = prior.double()(codes, labels)
    logits = prior.to(device)(codes.to(device), labels.to(device))
    torch.testing.assert_close(logits.cpu(), expected)
