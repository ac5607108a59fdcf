# SPDX-License-Identifier: Apache-2.0
"""Sampling by a graph, here of recorded operations: the codes of plain sampling, bit for bit."""

import pytest
import torch

from fastvq import priors
from fastvq.priors import _graph, sample_from

from . import recording

CODES = 7
# of each: the prior, the sizes of a grid, its period, and after how many positions it is told
CASES = {
    "pixelcnn": (
        lambda **fields: priors.GatedPixelCNN(
            priors.GatedPixelCNNConfig(CODES, channels=8, layers=2, kernel_size=5, **fields)
        ),
        (5, 3),
        3,
        [1, 2, 3, 6, 9, 12, 15],
    ),
    "wavenet": (
        lambda **fields: priors.WaveNet(
            priors.WaveNetConfig(CODES, channels=4, layers=4, cycle=3, kernel_size=3, **fields)
        ),
        (64 * 3 + 5,),
        64,
        [*range(1, 65), 128, 192, 193, 194, 195, 196, 197],
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
    make, shape, period, told = case
    prior = prior_of(make, num_classes=3, context_channels=2)
    context, labels = torch.randn(3, 2, *shape), torch.tensor([0, 2, 1])
    uniforms, seen = torch.rand(3, *shape, dtype=torch.float64), []
    assert prior.stepper(3, shape, labels, context).period == period
    found = sample_from(
        prior, uniforms, labels, context=context, graph=True,
        progress=lambda *done: seen.append(done), **options,
    )  # fmt: skip
    assert torch.equal(found, sample_from(prior, uniforms, labels, context=context, **options))
    assert seen == [(done, told[-1]) for done in told]


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("pixelcnn", 1, [1, 2, 3, 6, 9, 12, 15]),
        ("pixelcnn", 3, [1, 2, 3, 6, 9, 12, 15]),
        ("pixelcnn", 4, [1, 2, 3, 4, 5, 6, 9, 12, 15]),
        ("wavenet", 70, [*range(1, 129), 192, 193, 194, 195, 196, 197]),
    ],
)
def test_a_graph_begins_after_the_prefix(name, given, told, recorded):
    make, shape, _, _ = CASES[name]
    prior, uniforms, seen = prior_of(make), torch.rand(2, *shape), []
    prefix = torch.randint(CODES, (2, given))
    found = sample_from(
        prior, uniforms, prefix=prefix, graph=True, progress=lambda done, _: seen.append(done)
    )
    assert torch.equal(found, sample_from(prior, uniforms, prefix=prefix))
    assert torch.equal(found.flatten(1)[:, :given], prefix)
    assert seen == told


def test_a_graph_draws_a_level_below_others(recorded):
    inner = priors.GatedPixelCNNConfig(
        CODES, channels=8, layers=2, kernel_size=5, context_channels=4
    )
    above = priors.LevelContextConfig(codebook_sizes=(5,), channels=8, layers=1)
    torch.manual_seed(0)
    prior = priors.LevelPrior(priors.LevelPriorConfig(inner, above)).eval()
    with torch.no_grad():
        prior.prior.logits.weight.mul_(300)
    uniforms, seen = torch.rand(2, 4, 2, dtype=torch.float64), []
    grids = [(torch.randint(5, (2, 2, 1)),) for _ in range(2)]
    found = [
        sample_from(
            prior, uniforms, context=grid, graph=True, progress=lambda done, _: seen.append(done)
        )
        for grid in grids
    ]
    for codes, grid in zip(found, grids, strict=True):
        assert torch.equal(codes, sample_from(prior, uniforms, context=grid))
    assert not torch.equal(*found)
    assert seen == 2 * [1, 2, 4, 6, 8]


def test_refuses_what_no_graph_can_draw(recorded):
    make, _, _, _ = CASES["pixelcnn"]
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
    make, shape, _, _ = CASES["pixelcnn"]
    with pytest.raises(ValueError, match="unless the prior is on a CUDA device, got cpu"):
        priors.sample(prior_of(make), shape, graph=True)
