"""``Transformer``: the shared contract on one, two and three axes, its positions, its errors."""

import math
from typing import ClassVar

import pytest
import torch
from torch.nn import functional

from fastvq.priors import Transformer, TransformerConfig
from fastvq.priors.transformer import _grid_waves
from fastvq.testing.prior_contract import PriorContract

CODES = 7


def make(**fields):
    """A prior small enough to look at, with weights as large as training makes them."""
    sizes = {"channels": 12, "heads": 3, "layers": 2, "mlp_channels": 10}
    prior = Transformer(TransformerConfig(CODES, **sizes | fields))
    with torch.no_grad():
        prior.logits.weight.mul_(80)
        for layer in prior.layers:
            layer.attention_out.weight.mul_(3)
    return prior


class TestTransformer(PriorContract):
    shapes = ((5, 9), (37,), (2, 3, 4), (1, 1))
    sampled_shapes = ((3, 5), (2, 2, 3), (11,))
    variants: ClassVar = {"heads-3": {}, "head-1": {"heads": 1, "layers": 1}}

    def make(self, **fields):
        return make(**fields)


@pytest.mark.parametrize("shape", [(4096,), (64, 64), (16, 16, 16), (2, 3, 4, 5)])
def test_every_place_has_waves_of_its_own(shape):
    waves = _grid_waves(shape, torch.zeros((), dtype=torch.float64))
    assert waves.shape == (math.prod(shape), 96)
    assert waves.abs().max() <= 1
    assert len(waves.mul(1000).round().unique(dim=0)) == len(waves)


def test_waves_are_those_of_each_axis():
    """The features of an axis depend on that coordinate alone, in raster order."""
    shape = (3, 4, 5)
    waves = _grid_waves(shape, torch.zeros(())).view(*shape, 3, 32)
    assert torch.equal(waves[..., 0, :], waves[:, :1, :1, 0].expand(3, 4, 5, 32))
    assert torch.equal(waves[..., 1, :], waves[:1, :, :1, 1].expand(3, 4, 5, 32))
    assert torch.equal(waves[..., 2, :], waves[:1, :1, :, 2].expand(3, 4, 5, 32))
    # the shortest wave is of four positions
    torch.testing.assert_close(waves[:, 0, 0, 0, 0], torch.tensor([0.0, 1.0, 0.0]))


@torch.no_grad()
def test_the_shape_is_told():
    """The same codes in another shape are another grid."""
    prior, codes = make().eval(), torch.zeros(1, 12, dtype=torch.int64)
    apart = torch.pdist(
        torch.stack(
            [prior(codes.view(1, *s)).flatten() for s in [(12,), (3, 4), (4, 3), (2, 2, 3)]]
        )
    )
    assert apart.min() > 1e-3


@torch.no_grad()
def test_attention_is_the_formula():
    """Softmax over the tokens up to one's own of q k / sqrt(d), head by head."""
    block = make().double().eval().layers[0]
    x = torch.randn(2, 6, 12, dtype=torch.float64)
    q, k, v = functional.linear(x, block.qkv.weight).chunk(3, dim=-1)
    heads = []
    for part in range(3):
        own = slice(4 * part, 4 * part + 4)
        scores = q[..., own] @ k[..., own].mT / 2
        scores.masked_fill_(torch.ones(6, 6).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., own])
    torch.testing.assert_close(block._attended(x), torch.cat(heads, dim=-1))


def test_memory_is_linear_in_the_positions(poisoned_empty):
    """A training step over 4096 positions keeps no 4096 x 4096 of anything."""
    prior = make(layers=1, heads=3).train()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        nll = prior.nll(torch.randint(CODES, (1, 4096)))
    nll.mean().backward()
    assert max(kept) <= 4096 * 4 * 48


def test_a_fresh_prior_knows_nothing():
    """The first loss is within a twentieth of a nat of log K: no wild start to unlearn."""
    prior = Transformer(TransformerConfig(64, 10)).eval()
    codes, labels = torch.randint(64, (32, 4, 4)), torch.randint(10, (32,))
    assert prior.nll(codes, labels).mean().item() == pytest.approx(math.log(64), abs=0.1)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"channels": 10}, ValueError, "channels must be a multiple of heads = 4, got 10"),
        ({"layers": 0}, ValueError, "layers must be at least 1, got 0"),
        ({"heads": 1.0}, TypeError, "heads must be an int, got float"),
        ({"mlp_channels": 0}, ValueError, "mlp_channels must be at least 1, got 0"),
    ],
)
def test_refuses_configs(fields, error, message):
    with pytest.raises(error, match=message):
        TransformerConfig(8, **fields)


def test_refuses_too_many_axes():
    with pytest.raises(ValueError, match="shape must have at most 48 axes, got 49"):
        make()(torch.zeros(1, *[1] * 49, dtype=torch.int64))
