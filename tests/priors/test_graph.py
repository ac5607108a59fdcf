# SPDX-License-Identifier: Apache-2.0
"""Sampling by a graph, here of recorded operations: the codes of plain sampling, bit for bit."""

import pytest
import torch

from fastvq import priors
from fastvq.priors import _graph, sample_from

from . import recording

CODES = 7
# of each: the prior, the sizes of a grid, its period
CASES = {
    "pixelcnn": (
        lambda **fields: priors.GatedPixelCNN(
            priors.GatedPixelCNNConfig(CODES, channels=8, layers=2, kernel_size=5, **fields)
        ),
        (5, 3),
        3,
    ),
    "wavenet": (
        lambda **fields: priors.WaveNet(
            priors.WaveNetConfig(CODES, channels=4, layers=4, cycle=3, kernel_size=3, **fields)
        ),
        (64 * 3 + 5,),
        64,
    ),
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(_graph, "check_device", lambda device: None)
    monkeypatch.setattr(_graph, "capture", recording.capture)


def prior_of(make, **fields):
    """Weights so large that a code of another row would show."""
    torch.manual_seed(0)
    prior = make(**fields).eval()
    with torch.no_grad():
        prior.logits.weight.mul_(300)
    return prior


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_k": 4, "top_p": 0.9}])
def test_a_graph_draws_the_same_codes(case, options, recorded):
    make, shape, period = case
    prior = prior_of(make, num_classes=3, context_channels=2)
    context, labels = torch.randn(3, 2, *shape), torch.tensor([0, 2, 1])
    uniforms, seen = torch.rand(3, *shape, dtype=torch.float64), []
    assert prior.stepper(3, shape, labels, context).period == period
    found = sample_from(
        prior, uniforms, labels, context=context, graph=True,
        progress=lambda *done: seen.append(done), **options,
    )  # fmt: skip
    assert torch.equal(found, sample_from(prior, uniforms, labels, context=context, **options))
    total = found[0].numel()
    replayed = range(2 * period, total + 1, period)
    after = range(total // period * period + 1, total + 1)
    assert seen == [(done, total) for done in [*range(1, period + 1), *replayed, *after]]


@pytest.mark.parametrize("given", [1, 3, 4])
def test_a_graph_begins_after_the_prefix(given, recorded):
    make, shape, period = CASES["pixelcnn"]
    prior, uniforms, seen = prior_of(make), torch.rand(2, *shape), []
    prefix = torch.randint(CODES, (2, given))
    found = sample_from(
        prior, uniforms, prefix=prefix, graph=True, progress=lambda done, _: seen.append(done)
    )
    assert torch.equal(found, sample_from(prior, uniforms, prefix=prefix))
    assert seen.index(-(-given // period) * period + period) == -(-given // period) * period


def test_refuses_what_no_graph_can_draw(recorded):
    make, _, _ = CASES["pixelcnn"]
    with pytest.raises(
        ValueError, match=r"a whole period of 4 positions follows the first 4, .* 4"
    ):
        sample_from(prior_of(make), torch.rand(1, 1, 4), graph=True)
    with pytest.raises(ValueError, match=r"period of 4 positions follows the first 8, .* got 8"):
        sample_from(
            prior_of(make), torch.rand(1, 2, 4), prefix=torch.zeros(1, 5).long(), graph=True
        )
    transformer = priors.Transformer(priors.TransformerConfig(CODES, channels=8, heads=1, layers=1))
    for prior, cached in ((transformer, True), (prior_of(make), False)):
        with pytest.raises(TypeError, match=r"unless a prior's steps repeat.*got .*Stepper"):
            sample_from(prior, torch.rand(1, 2, 4), cached=cached, graph=True)


def test_refuses_a_device_without_graphs():
    make, shape, _ = CASES["pixelcnn"]
    with pytest.raises(ValueError, match="unless the prior is on a CUDA device, got cpu"):
        priors.sample(prior_of(make), shape, graph=True)
