"""Sampling: the drawn distribution against plain arithmetic, and what it refuses.

That caches give the samples of the whole prior is in the contract of every prior.
"""

import math

import pytest
import torch
from torch import nn

from fastvq.priors import (
    GatedPixelCNN,
    GatedPixelCNNConfig,
    Prior,
    PriorConfig,
    RecomputeStepper,
    probabilities,
    sample,
    sample_from,
)

CODES = 11
NEARLY_ONE = 1 - 2**-53


def make(classes, dtype=torch.float32, **options):
    """A prior whose logits are of order one, as after training."""
    options = {"channels": 16, "layers": 3, "kernel_size": 3} | options
    prior = GatedPixelCNN(GatedPixelCNNConfig(CODES, classes, **options)).to(dtype).eval()
    with torch.no_grad():
        prior.logits.weight.mul_(200)
        for layer in prior.layers:
            layer.vertical.weight.mul_(2)
            layer.horizontal.weight.mul_(2)
    return prior


class Histogram(Prior):
    """One distribution for all positions: what is drawn can be computed by hand."""

    def __init__(self, logits):
        super().__init__(PriorConfig(len(logits)))
        self.values = nn.Parameter(torch.tensor(logits))

    @property
    def reach(self):
        return 0

    def forward(self, codes, labels=None, context=None):
        return self.values.expand(*codes.shape, -1)

    def stepper(self, batch, shape, labels=None, context=None):
        return RecomputeStepper(self, batch, shape, labels)


def plain(logits, temperature, top_k, top_p):
    """The documented distribution, one row at a time in Python floats."""
    scaled = [value / temperature for value in logits]
    weights = [math.exp(value - max(scaled)) for value in scaled]
    order = sorted(range(len(weights)), key=lambda k: (-weights[k], k))
    order = order[: len(order) if top_k is None else top_k]
    total = sum(weights[k] for k in order)
    kept, reached = [], 0.0
    for k in order:
        if reached >= (1.0 if top_p is None else top_p) and kept:
            break
        kept.append(k)
        reached += weights[k] / total
    total = sum(weights[k] for k in kept)
    return [weights[k] / total if k in kept else 0.0 for k in range(len(weights))]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("top_k", [None, 1, 3, 40])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.95, 1.0])
def test_probabilities_are_the_documented_ones(temperature, top_k, top_p):
    logits = torch.randn(20, 9, dtype=torch.float64) * 2
    logits[0] = 0
    logits[1, 3:6] = 5
    expected = [plain(row, temperature, top_k, top_p) for row in logits.tolist()]
    found = probabilities(logits, temperature, top_k, top_p)
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15
    )


def test_probabilities_by_hand():
    logits = torch.tensor([[8.0, 4.0, 2.0, 2.0]]).log()
    for options, expected in (
        ({}, [8, 4, 2, 2]),
        ({"top_k": 3}, [8, 4, 2, 0]),
        ({"top_p": 0.5}, [8, 0, 0, 0]),
        ({"top_p": 0.51}, [8, 4, 0, 0]),
        ({"top_p": 0.8}, [8, 4, 2, 0]),
        # of the three best, renormalised, two reach 0.8
        ({"top_k": 3, "top_p": 0.8}, [8, 4, 0, 0]),
        ({"temperature": 0.5}, [64, 16, 4, 4]),
        ({"temperature": 1e-300}, [1, 0, 0, 0]),
    ):
        wanted = torch.tensor([expected]).double()
        torch.testing.assert_close(probabilities(logits, **options), wanted / wanted.sum())


def test_equally_probable_codes_are_kept_from_the_lowest_up():
    # sums of 1/4 are exact, so the second code is the one that reaches a half
    assert probabilities(torch.zeros(1, 4), top_p=0.5).tolist() == [[0.5, 0.5, 0, 0]]
    # enough codes that an unstable sort would mix them
    kept = probabilities(torch.zeros(1, 4096), top_k=4)
    assert kept[0].nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_one_number_decides_one_code():
    """Edges of the distribution function: the code above an edge, and never an impossible one."""
    prior = Histogram([-math.inf, 0.0, 0.0, -math.inf, math.log(2.0), -math.inf])
    prior.values.data[prior.values.isinf()] = -1e30
    uniforms = [0.0, 0.24, 0.26, 0.49, 0.51, NEARLY_ONE]
    codes = sample_from(prior, torch.tensor([uniforms], dtype=torch.float64))
    assert codes.tolist() == [[1, 1, 2, 2, 4, 4]]
    likely_first = sample_from(prior, torch.tensor([uniforms], dtype=torch.float64), top_k=1)
    assert likely_first.tolist() == [[4] * 6]


@pytest.mark.parametrize("size", [1, 2, 64, 8192])
def test_no_number_falls_off_the_end(size):
    prior = Histogram(torch.randn(size).tolist())
    uniforms = torch.tensor([[0.0, NEARLY_ONE]], dtype=torch.float64)
    assert sample_from(prior, uniforms).tolist() == [[0, size - 1]]


@pytest.fixture(scope="module")
def trained():
    """A prior of 2 x 2 grids of 2 codes, trained on a law in which every code depends on others."""
    torch.manual_seed(0)
    prior = GatedPixelCNN(GatedPixelCNNConfig(2, channels=8, layers=1, dropout=0, code_dropout=0))
    optimizer = torch.optim.Adam(prior.parameters(), 0.02)
    first = torch.rand(512) < 0.3
    second = first ^ (torch.rand(512) < 0.2)
    third = second ^ (torch.rand(512) < 0.1)
    fourth = (first & third) ^ (torch.rand(512) < 0.2)
    grids = torch.stack([first, second, third, fourth], dim=1).view(-1, 2, 2).long()
    for _ in range(100):
        optimizer.zero_grad()
        prior.nll(grids).mean().backward()
        optimizer.step()
    return prior.eval()


@torch.no_grad()
def p_value(prior, samples):
    """Chance of a chi-square so large, were ``samples`` drawn from the prior."""
    grids = torch.cartesian_prod(*[torch.arange(2)] * 4)
    expected = (-prior.double().nll(grids.view(-1, 2, 2)).flatten(1).sum(1)).exp() * len(samples)
    prior.float()
    index = samples.flatten(1) @ torch.tensor([8, 4, 2, 1])
    counts = torch.bincount(index, minlength=16)
    assert expected.min() > 10
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor(15 / 2).double(), statistic / 2).item()


def test_samples_have_the_distribution_of_the_prior(trained):
    """Chi-square over all 16 grids; one false alarm in 10^6 seeds, and this seed gave none."""
    draw = torch.Generator().manual_seed(1)
    samples = sample(trained, (2, 2), batch=50_000, generator=draw)
    assert p_value(trained, samples) > 1e-6
    # the test has the power to see a wrong sampler
    hotter = sample(trained, (2, 2), batch=50_000, temperature=1.1, generator=draw)
    assert p_value(trained, hotter) < 1e-6


def test_the_generator_decides_the_sample():
    prior = make(3)
    labels = torch.tensor([0, 1, 2])
    first, second, other = (
        sample(prior, (4, 6), labels, generator=torch.Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    )
    assert first.shape == (3, 4, 6)
    assert first.dtype == torch.int64
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    default = sample(prior, (4, 6), batch=2)
    torch.manual_seed(7)
    assert torch.equal(default, sample(prior, (4, 6), batch=2))
    assert sample(prior, (4, 6)).shape == (1, 4, 6)


def test_eval_mode_inside_and_every_mode_as_before_afterwards():
    prior = make(3, dropout=0.5, code_dropout=0.5).train()
    prior.layers[1].eval()
    modes = [module.training for module in prior.modules()]
    uniforms, labels = torch.rand(4, 4, 4), torch.tensor([0, 1, 2, 0])
    noisy = sample_from(prior, uniforms, labels)
    assert [module.training for module in prior.modules()] == modes
    assert torch.equal(noisy, sample_from(prior.eval(), uniforms, labels))


def test_progress_counts_positions():
    seen = []
    sample(make(None), (2, 3), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(position, 6) for position in range(1, 7)]


def test_classes_reach_the_samples():
    prior = make(2)
    uniforms = torch.rand(1, 5, 5).expand(2, -1, -1)
    zero, one = sample_from(prior, uniforms, torch.tensor([0, 1]))
    assert not torch.equal(zero, one)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be finite and above 0, got 0"),
        ({"temperature": math.nan}, ValueError, "temperature must be finite and above 0, got nan"),
        ({"top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"top_k": 2.0}, TypeError, "top_k must be an int, got float"),
        ({"top_p": 0.0}, ValueError, r"top_p must be in \(0, 1\], got 0"),
        ({"top_p": 1.5}, ValueError, r"top_p must be in \(0, 1\], got 1.5"),
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"shape": (4, 0)}, ValueError, "each size in shape must be at least 1, got 0"),
        ({"shape": (4,)}, ValueError, r"shape must have 2 axes, .* got \(4,\)"),
        (
            {"batch": 3, "labels": torch.tensor([0, 1])},
            ValueError,
            "batch must be that of the labels, 2, got 3",
        ),
        ({"labels": torch.tensor([0, 9])}, ValueError, r"num_classes = 3\), got 9"),
    ],
)
def test_refuses(options, error, message):
    with pytest.raises(error, match=message):
        sample(make(3), **{"shape": (2, 2)} | options)


@pytest.mark.parametrize(
    ("uniforms", "error", "message"),
    [
        (torch.zeros(1, 2, 2, dtype=torch.int64), TypeError, "uniforms must be float32.*int64"),
        (torch.rand(4), ValueError, r"uniforms must be \[B, \*shape\].*got \[4\]"),
        (torch.rand(0, 2, 2), ValueError, r"uniforms must be \[B, \*shape\].*got \[0, 2, 2\]"),
        (torch.ones(1, 2, 2), ValueError, r"uniforms must be in \[0, 1\), got values from 1 to 1"),
        (torch.full((1, 2, 2), math.nan), ValueError, r"uniforms must be in \[0, 1\), got.*nan"),
    ],
)
def test_refuses_uniforms(uniforms, error, message):
    with pytest.raises(error, match=message):
        sample_from(make(None), uniforms)


def test_a_diverged_prior_is_named():
    prior = make(None)
    prior.hidden.bias.data.fill_(math.nan)
    with pytest.raises(RuntimeError, match="not finite: its training diverged"):
        sample(prior, (2, 2))
