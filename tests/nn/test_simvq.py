"""``SimVQ``: the shared contract, its formulas, its peer, and the defects of peers."""

import pytest
import torch
import vector_quantize_pytorch as peer

import fastvq
from fastvq import SimVQ, testing
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return SimVQ(self.dim, 32, channel_dim=channel_dim)


class TestContractNarrow(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return SimVQ(self.dim, 50, codebook_dim=5, channel_dim=channel_dim)


@pytest.mark.parametrize("gradient", ["rotation", "diveq"])
def test_gradient_is_the_ops(gradient):
    vq, x = SimVQ(8, 20, gradient=gradient), torch.randn(30, 8, requires_grad=True)
    quantized, indices, loss = vq(x)
    inputs = (x, vq.map.weight)
    actual = torch.autograd.grad(quantized.square().sum() + loss, inputs)
    out = fastvq.ops.quantize(x, vq.codebook, indices, gradient=gradient)
    total = out.quantized.square().sum() + 0.25 * out.commitment_loss + out.codebook_loss
    for a, b in zip(actual, torch.autograd.grad(total, inputs), strict=True):
        testing.assert_within(a, b.double(), 1e-6 * b.abs().max())
    with pytest.raises(ValueError, match="did you mean 'rotation'"):
        SimVQ(8, 20, gradient="rotate")


def test_values_by_hand():
    vq = SimVQ(2, 3, codebook_dim=1, codebook_weight=0.5)
    vq.frozen.copy_(torch.tensor([[-1.0], [0.0], [2.0]]))
    vq.map.weight.data.copy_(torch.tensor([[1.0], [0.5]]))
    assert vq.codebook.tolist() == [[-1, -0.5], [0, 0], [2, 1]]
    quantized, indices, loss = vq(torch.tensor([[-0.9, -0.5], [0.2, 0.1], [1.9, 1.2]]))
    assert indices.tolist() == [0, 1, 2]
    assert quantized.tolist() == [[-1, -0.5], [0, 0], [2, 1]]
    squares = 0.1**2 + 0 + 0.2**2 + 0.1**2 + 0.1**2 + 0.2**2
    assert loss.item() == pytest.approx((0.5 + 0.25) * squares / 6)


def test_gradients_are_the_formulas(backend):
    vq = SimVQ(6, 20, codebook_dim=4, codebook_weight=0.6, commitment_weight=0.3)
    x = torch.randn(50, 6, requires_grad=True)
    quantized, indices, loss = vq(x)
    cotangent = torch.randn_like(x)
    ((quantized * cotangent).sum() + 2 * loss).backward()
    weight = vq.map.weight.detach().double().requires_grad_()
    codes = (vq.frozen.double() @ weight.T)[indices]
    squared = (x.detach().double() - codes).square().mean()
    (expected,) = torch.autograd.grad(2 * 0.6 * squared, weight)
    testing.assert_within(vq.map.weight.grad, expected, 1e-6)
    expected = cotangent + 2 * 0.3 * 2 / x.numel() * (x - codes.float()).detach()
    testing.assert_within(x.grad, expected.double(), 1e-6)
    assert loss.item() == pytest.approx(0.9 * squared.item(), rel=1e-5)


def test_codes_are_the_nearest(backend):
    vq = SimVQ(16, 200, codebook_dim=8)
    x = torch.randn(300, 16) + 10
    assert not testing.wrong_codes(x, vq.codebook.detach(), vq.encode(x)).any()


def test_is_the_peers():
    theirs = peer.SimVQ(16, 100, rotation_trick=False, frozen_codebook_dim=8)
    ours = SimVQ(16, 100, codebook_dim=8)
    names = {"frozen_codebook": "frozen", "code_transform.weight": "map.weight"}
    ours.load_state_dict({names[name]: value for name, value in theirs.state_dict().items()})
    x, y = torch.randn(4, 30, 16, requires_grad=True), torch.empty(4, 30, 16, requires_grad=True)
    y.data.copy_(x.data)
    quantized, indices, loss = ours(x)
    expected, expected_indices, expected_loss = theirs(y)
    assert torch.equal(indices, expected_indices)
    testing.assert_within(quantized, expected.detach().double(), 1e-5)
    testing.assert_within(loss, expected_loss.detach().double(), 1e-5)
    testing.assert_within(ours.decode(indices), theirs.indices_to_codes(indices).double(), 1e-5)
    cotangent = torch.randn_like(quantized)
    ((quantized * cotangent).sum() + loss).backward()
    ((expected * cotangent).sum() + expected_loss).backward()
    testing.assert_within(x.grad, y.grad.double(), 1e-5)
    testing.assert_within(ours.map.weight.grad, theirs.code_transform.weight.grad.double(), 1e-5)


def test_every_code_is_its_own_code():
    vq, every = SimVQ(8, 500, codebook_dim=6), torch.arange(500)
    assert torch.equal(vq.encode(vq.decode(every)), every)
    assert torch.equal(vq.decode(every), vq.codebook)


def test_only_the_map_learns():
    vq = SimVQ(8, 64)
    before = vq.frozen.clone()
    optimizer = torch.optim.Adam(vq.parameters(), 1e-2)
    x = torch.randn(512, 8) * 3
    first = vq(x).loss.item()
    for _ in range(300):
        optimizer.zero_grad()
        loss = vq(x).loss
        loss.backward()
        optimizer.step()
    assert torch.equal(vq.frozen, before)
    assert [name for name, _ in vq.named_parameters()] == ["map.weight"]
    assert loss < 0.6 * first
    # one map moves all codes, so that none dies: the point of the paper
    assert vq.encode(x).unique().numel() > 0.9 * 64


def test_codes_are_mapped_once_a_call():
    vq, calls = SimVQ(8, 64), []
    linear = torch.nn.functional.linear

    def counted(*args):
        calls.append(args)
        return linear(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", counted)
        for call in (lambda: vq(torch.randn(5, 8)), lambda: vq.encode(torch.randn(5, 8))):
            calls.clear()
            call()
            assert len(calls) == 1


def test_autocast_leaves_the_codes_alone():
    # a peer maps and searches in the dtype of autocast: 1 % of its indices move
    vq, x = SimVQ(16, 512), torch.randn(2000, 16)
    plain = vq(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = vq(x)
    assert all(torch.equal(a, b) for a, b in zip(plain, cast, strict=True))


def test_half_models_search_wide_codes():
    vq = SimVQ(16, 512).to(torch.bfloat16)
    assert vq.codebook.dtype == torch.float32
    assert vq.codebook.unique(dim=0).shape[0] == 512
    x = torch.randn(300, 16).bfloat16()
    assert not testing.wrong_codes(x, vq.codebook.detach(), vq.encode(x)).any()


def test_mask():
    vq = SimVQ(8, 16)
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    x[~mask] = torch.nan
    x.requires_grad_()
    quantized, indices, loss = vq(x, mask)
    (quantized.sum() + loss).backward()
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert (x.grad[~mask] == 0).all()
    assert torch.isfinite(vq.map.weight.grad).all()
    kept = vq(x[mask])
    assert loss.item() == pytest.approx(kept.loss.item(), rel=1e-6)
    assert torch.equal(indices[mask], kept.indices)
    assert torch.equal(vq.decode(indices), quantized)
    with pytest.raises(TypeError, match="mask must be bool, got int64"):
        vq(x, mask.long())


def test_a_bad_row_shows_in_the_loss():
    vq, x = SimVQ(8, 16), torch.randn(4, 8)
    x[1, 2] = torch.nan
    quantized, indices, loss = vq(x)
    assert indices[1] == 0
    assert loss.isnan()
    assert torch.isfinite(quantized).all()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"codebook_size": 2.5}, TypeError, "codebook_size must be an int, got float"),
        ({"codebook_dim": -1}, ValueError, "codebook_dim must be at least 1, got -1"),
        ({"codebook_weight": -1}, ValueError, "codebook_weight must be in"),
        ({"commitment_weight": "a"}, TypeError, "commitment_weight must be a number"),
        ({"rotation_trick": True}, TypeError, "rotation_trick"),
    ],
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        fastvq.SimVQ(**{"dim": 8, "codebook_size": 16, **change})
