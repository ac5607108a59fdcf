"""``GroupedResidualVQ``: the contract, and equality with its groups quantized apart."""

import pytest
import torch

from fastvq import Gradient, GroupedResidualVQ, ResidualVQ, Uniform, testing
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return GroupedResidualVQ(self.dim, 24, 3, 2, channel_dim=channel_dim)


class TestContractByGradient(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return GroupedResidualVQ(
            self.dim, 24, 2, 4, learning=Gradient(), gradient="rotation", channel_dim=channel_dim
        )


def test_is_its_groups_side_by_side():
    options = {"start": Uniform(1.0), "channel_dim": 1, "commitment_weight": 0.5}
    torch.manual_seed(3)
    grouped = GroupedResidualVQ(12, 20, 3, 2, **options)
    torch.manual_seed(3)
    alone = [ResidualVQ(6, 20, 3, **options) for _ in range(2)]
    x, mask = torch.randn(4, 12, 10), torch.rand(4, 10) > 0.2
    for step in range(2):
        torch.manual_seed(step)
        out = grouped(x, mask)
        torch.manual_seed(step)
        parts = [q(part, mask) for q, part in zip(alone, x.split(6, 1), strict=True)]
        assert torch.equal(out.quantized, torch.cat([p.quantized for p in parts], 1))
        assert torch.equal(out.indices, torch.stack([p.indices for p in parts], -2))
        testing.assert_within(out.loss, (parts[0].loss + parts[1].loss).double() / 2, 1e-6)
    assert torch.equal(grouped.codebook, torch.stack([q.codebook for q in alone]))
    assert out.indices.shape == (4, 10, 2, 3)
    assert [u.perplexity for u in grouped.usage()] == [q.usage().perplexity for q in alone]


def test_is_the_peers():
    peer = pytest.importorskip("vector_quantize_pytorch")
    theirs = peer.GroupedResidualVQ(
        dim=12, groups=2, num_quantizers=3, codebook_size=20, rotation_trick=False
    ).eval()
    ours = GroupedResidualVQ(12, 20, 3, 2).eval()
    codebooks = torch.randn(2, 3, 20, 6)
    for group, codes in enumerate(codebooks):
        ours.quantizers[group].book.vectors.copy_(codes)
        for layer, level in zip(theirs.rvqs[group].layers, codes, strict=True):
            layer._codebook.embed.copy_(level.unsqueeze(0))
            layer._codebook.initted.fill_(True)
    x = torch.randn(2, 40, 12)
    quantized, indices, _ = theirs(x)
    out = ours(x)
    assert torch.equal(out.indices, indices.movedim(0, -2))
    testing.assert_within(out.quantized, quantized.double(), 1e-5)


def test_levels_and_beam():
    vq = GroupedResidualVQ(12, 20, 3, 2)
    x = torch.randn(200, 12)
    vq(x)
    vq.eval()
    indices = vq.encode(x)
    assert torch.equal(vq.encode(x, levels=2), indices[..., :2])
    assert vq.decode(indices[..., :1]).shape == x.shape
    error = (vq.decode(indices) - x).square().sum(-1)
    better = (vq.decode(vq.encode(x, beam=4)) - x).square().sum(-1)
    assert better.mean() < error.mean()


def test_bad_arguments():
    with pytest.raises(ValueError, match="multiple of groups = 5, got 12"):
        GroupedResidualVQ(12, 20, 3, 5)
    with pytest.raises(ValueError, match=r"G = 2, got \[7, 3, 3\]"):
        GroupedResidualVQ(12, 20, 3, 2).decode(torch.zeros(7, 3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="straight_through, rotation, got 'diveq'"):
        GroupedResidualVQ(12, 20, 3, 2, gradient="diveq")
