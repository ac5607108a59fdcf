"""``ResidualSimVQ``: the contract, its formulas, the op it is made of, and its peer."""

import pytest
import torch
import vector_quantize_pytorch as peer

import fastvq
from fastvq import ResidualSimVQ, SimVQ, ops, testing
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return ResidualSimVQ(self.dim, 32, 3, channel_dim=channel_dim)


class TestContractNarrowWithDropout(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return ResidualSimVQ(self.dim, 50, 4, codebook_dim=5, dropout=0.5, channel_dim=channel_dim)


def test_one_level_is_simvq(backend):
    ours, theirs = ResidualSimVQ(8, 50, 1, codebook_dim=4), SimVQ(8, 50, codebook_dim=4)
    ours.load_state_dict(
        {"frozen": theirs.frozen.unsqueeze(0), "maps": theirs.map.weight.unsqueeze(0)}
    )
    x, y = torch.randn(60, 8, requires_grad=True), torch.empty(60, 8, requires_grad=True)
    y.data.copy_(x.data)
    out, expected = ours(x), theirs(y)
    assert torch.equal(out.indices.squeeze(-1), expected.indices)
    testing.assert_within(out.quantized, expected.quantized.detach().double(), 1e-6)
    (out.quantized.square().sum() + out.loss).backward()
    (expected.quantized.square().sum() + expected.loss).backward()
    testing.assert_within(x.grad, y.grad.double(), 1e-5)
    testing.assert_within(ours.maps.grad[0], theirs.map.weight.grad.double(), 1e-6)


def test_gradients_are_the_formulas(backend):
    vq = ResidualSimVQ(6, 20, 3, codebook_dim=4, codebook_weight=0.6, commitment_weight=0.3)
    x = torch.randn(50, 6, requires_grad=True)
    quantized, indices, loss = vq(x)
    cotangent = torch.randn_like(x)
    ((quantized * cotangent).sum() + 2 * loss).backward()
    maps = vq.maps.detach().double().requires_grad_()
    rows = x.detach().double().requires_grad_()
    before, expected = torch.zeros(50, 6, dtype=torch.float64), 0.0
    for q in range(3):
        codes = (vq.frozen[q].double() @ maps[q].T)[indices[:, q]]
        expected = expected + 0.6 * (rows.detach() - before - codes).square().mean()
        expected = expected + 0.3 * (rows - before - codes.detach()).square().mean()
        before = before + codes.detach()
    testing.assert_within(loss, expected.detach(), 1e-6)
    grad_maps, grad_rows = torch.autograd.grad(2 * expected, (maps, rows))
    testing.assert_within(vq.maps.grad, grad_maps, 1e-6)
    testing.assert_within(x.grad, cotangent.double() + grad_rows, 1e-6)


def test_codes_are_those_of_the_op():
    vq, x = ResidualSimVQ(16, 200, 4, codebook_dim=8), torch.randn(300, 16)
    assert torch.equal(vq.encode(x), ops.residual(x, vq.codebook).indices)
    assert torch.equal(vq.encode(x, levels=2), vq.encode(x)[:, :2])
    first = vq.decode(vq.encode(x, levels=2))
    testing.assert_within(first, ops.residual(x, vq.codebook[:2]).quantized.detach().double(), 0)


def test_is_the_peers():
    theirs = peer.ResidualSimVQ(
        dim=16, codebook_size=100, num_quantizers=3, rotation_trick=False, frozen_codebook_dim=8
    )
    ours = ResidualSimVQ(16, 100, 3, codebook_dim=8)
    layers = list(theirs.layers)
    ours.load_state_dict(
        {
            "frozen": torch.stack([layer.frozen_codebook for layer in layers]),
            "maps": torch.stack([layer.code_transform.weight.detach() for layer in layers]),
        }
    )
    x = torch.randn(4, 30, 16, requires_grad=True)
    quantized, indices, loss = ours(x)
    expected, expected_indices, expected_losses = theirs(x)
    assert torch.equal(indices, expected_indices)
    testing.assert_within(quantized, expected.detach().double(), 1e-5)
    testing.assert_within(loss, expected_losses.sum().detach().double(), 1e-5)
    decoded = theirs.get_output_from_indices(indices)
    testing.assert_within(ours.decode(indices), decoded.detach().double(), 1e-5)


def test_every_level_learns():
    vq = ResidualSimVQ(8, 64, 3)
    optimizer = torch.optim.Adam(vq.parameters(), 0.02)
    data = torch.randn(2000, 8)
    for _ in range(150):
        optimizer.zero_grad()
        vq(data).loss.backward()
        optimizer.step()
    indices = vq.encode(data)
    errors = [(vq.decode(indices[:, : q + 1]) - data).square().mean() for q in range(3)]
    # a random code of 64 in 8 dimensions takes a third of what is left, and more
    assert errors[0] < 0.7
    assert errors[1] < 0.75 * errors[0]
    assert errors[2] < 0.75 * errors[1]


def test_mask_and_bad_rows():
    vq = ResidualSimVQ(8, 16, 3)
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    x[~mask] = torch.nan
    x.requires_grad_()
    quantized, indices, loss = vq(x, mask)
    (quantized.sum() + loss).backward()
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert (x.grad[~mask] == 0).all()
    assert torch.isfinite(vq.maps.grad).all()
    kept = vq(x[mask])
    assert loss.item() == pytest.approx(kept.loss.item(), rel=1e-6)
    assert torch.equal(indices[mask], kept.indices)
    assert torch.equal(vq.decode(indices), quantized)
    out = vq(x)
    assert out.loss.isnan()
    assert (out.indices[~mask] == 0).all()
    assert torch.equal(out.quantized[mask], kept.quantized)


def test_dropout_takes_levels_in_training_only():
    vq, x = ResidualSimVQ(8, 16, 4, dropout=0.5), torch.randn(400, 3, 8)
    levels = (vq(x).indices >= 0).sum(-1)
    assert (levels == levels[:, :1]).all()
    share = torch.bincount(levels[:, 0], minlength=5).double() / 400
    for actual, expected in zip(share.tolist(), (0, 0.125, 0.125, 0.125, 0.625), strict=True):
        assert abs(actual - expected) < 0.08
    assert (vq.eval()(x).indices >= 0).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"num_quantizers": 2.0}, TypeError, "num_quantizers must be an int, got float"),
        ({"codebook_dim": -1}, ValueError, "codebook_dim must be at least 1, got -1"),
        ({"codebook_weight": -1}, ValueError, "codebook_weight must be in"),
        ({"dropout": 1}, ValueError, r"dropout must be in \[0, 1\), got 1"),
        ({"rotation_trick": True}, TypeError, "rotation_trick"),
    ],
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        fastvq.ResidualSimVQ(**{"dim": 8, "codebook_size": 16, "num_quantizers": 2, **change})
