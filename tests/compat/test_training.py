"""Twenty steps of training beside other libraries, by gradient and by moving average."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

import fastvq
from fastvq.compat import from_fastvq, to_fastvq

STEPS = 20


def diffusers_quantizer(legacy):
    from diffusers.models.autoencoders.vae import VectorQuantizer

    module = VectorQuantizer(32, 8, 0.25, legacy=legacy)
    module.embedding.weight.data.normal_()
    return module


def dac_quantizer():
    from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer

    config = SimpleNamespace(
        n_codebooks=3, codebook_size=32, codebook_dim=8, hidden_size=16, quantizer_dropout=0.5
    )
    return DacResidualVectorQuantizer(config)


def trained(module, losses, batches):
    """The state after a step of Adam for each batch; dropout draws alike in every run."""
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for x in batches:
        optimizer.zero_grad()
        losses(module, x).sum().backward()
        optimizer.step()
    return module.state_dict()


def assert_same_state(expected, actual):
    assert expected.keys() == actual.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("legacy", [True, False])
def test_accelerated_diffusers_trains_the_same(legacy):
    before = diffusers_quantizer(legacy)
    after = copy.deepcopy(before)
    fastvq.accelerate(after)
    batches = torch.randn(STEPS, 2, 8, 5, 6)
    states = [trained(m, lambda m, x: m(x)[1], batches) for m in (before, after)]
    assert_same_state(*states)


def test_accelerated_dac_trains_the_same():
    before = dac_quantizer()
    after = copy.deepcopy(before)
    fastvq.accelerate(after)
    batches = torch.randn(STEPS, 4, 16, 20)

    def losses(module, x):
        out, _, _, commitment, codebook = module(x)
        return (out - x).square().mean() + 0.25 * commitment.mean() + codebook.mean()

    states = [trained(m, losses, batches) for m in (before, after)]
    assert_same_state(*states)


def test_a_converted_quantizer_trains_as_diffusers():
    theirs = diffusers_quantizer(legacy=False)
    ours = to_fastvq("taming", theirs.state_dict(), arguments={"revival": None}).build()
    batches = torch.randn(STEPS, 2, 8, 5, 6)
    expected = trained(theirs, lambda m, x: m(x)[1], batches)
    trained(ours, lambda m, x: m(x).loss, batches)
    assert_same_state(expected, from_fastvq("taming", ours))


def test_averages_go_on_as_lucidrains_and_back():
    from vector_quantize_pytorch import VectorQuantize

    theirs = VectorQuantize(8, 32, decay=0.9)
    for x in torch.randn(3, 2, 60, 8):
        theirs(x)
    name = "lucidrains.VectorQuantize"
    ours = to_fastvq(
        name, theirs.state_dict(), arguments={"learning": fastvq.EMA(0.9), "revival": None}
    ).build()
    batches = torch.randn(STEPS, 2, 60, 8)
    for x in batches:
        expected, indices, _ = theirs(x)
        quantized, found, _ = ours(x)
        assert torch.equal(found, indices)
        torch.testing.assert_close(quantized, expected, rtol=1e-5, atol=1e-5)
    # its counts are smoothed by 1e-5 of a vector, ours are not
    back = from_fastvq(name, ours)
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(back[key], tensor, rtol=1e-5, atol=1e-5)


def test_averages_go_on_as_rosinality():
    # its update in other words: decay 0.99, counts smoothed by 1e-5, which ours are not
    codes = torch.randn(8, 32)
    state = {"embed": codes, "cluster_size": torch.rand(32) * 9 + 1, "embed_avg": None}
    total = state["cluster_size"].sum()
    smooth = (state["cluster_size"] + 1e-5) / (total + 32 * 1e-5) * total
    state["embed_avg"] = codes * smooth
    ours = to_fastvq("rosinality", state, arguments={"revival": None}).build()
    for x in torch.randn(STEPS, 60, 8):
        index = torch.cdist(x.double(), state["embed"].t().double()).argmin(1)
        chosen = torch.zeros(60, 32).scatter(1, index.unsqueeze(1), 1.0)
        state["cluster_size"] = 0.99 * state["cluster_size"] + 0.01 * chosen.sum(0)
        state["embed_avg"] = 0.99 * state["embed_avg"] + 0.01 * x.t() @ chosen
        total = state["cluster_size"].sum()
        smooth = (state["cluster_size"] + 1e-5) / (total + 32 * 1e-5) * total
        state["embed"] = state["embed_avg"] / smooth
        assert torch.equal(ours(x).indices, index)
    assert_same_state(state, from_fastvq("rosinality", ours))
