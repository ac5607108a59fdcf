"""``IBQ``: the contract, the plain form with one-hots, and what reaches the codes."""

import math

import pytest
import torch
from torch.nn import functional

from fastvq import IBQ, ops, testing
from fastvq.testing.contract import QuantizerContract

from .processes import run_two


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return IBQ(self.dim, 32, channel_dim=channel_dim)


class TestContractWithoutEntropies(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return IBQ(self.dim, 20, entropy_weight=0.0, channel_dim=channel_dim)


def plain(vq, x):
    """The quantizer with the softmax and the one-hots in memory: output, indices, loss."""
    logits = x @ vq.codebook.T
    soft = torch.softmax(logits, dim=-1)
    hard = functional.one_hot(soft.argmax(-1), len(vq.codebook)).to(x.dtype)
    quantized = (hard + soft - soft.detach()) @ vq.codebook
    code = hard @ vq.codebook
    loss = (x - quantized).square().mean()
    loss = loss + vq.commitment_weight * (x - code.detach()).square().mean()
    loss = loss + vq.codebook_weight * (x.detach() - code).square().mean()
    p = torch.log_softmax(vq.inverse_temperature * logits, dim=-1)
    mean = torch.logsumexp(p, dim=0) - math.log(len(p))
    entropy = -(p.exp() * p).sum(-1).mean() + vq.diversity * (mean.exp() * mean).sum()
    return quantized, soft.argmax(-1), loss + vq.entropy_weight * entropy


def test_is_the_plain_form():
    vq = IBQ(
        6, 12, commitment_weight=0.6, codebook_weight=0.3, entropy_weight=0.7, diversity=1.3,
        inverse_temperature=2.0,
    ).double()  # fmt: skip
    x = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    out, (quantized, indices, loss) = vq(x), plain(vq, x)
    assert torch.equal(out.indices, indices)
    assert torch.equal(out.quantized, vq.codebook[indices])
    testing.assert_within(out.loss, loss.detach(), 1e-12)
    cotangent = torch.randn_like(x)
    wanted = (x, vq.codebook)
    actual = torch.autograd.grad((out.quantized * cotangent).sum() + 2 * out.loss, wanted)
    expected = torch.autograd.grad((quantized * cotangent).sum() + 2 * loss, wanted)
    for a, b in zip(actual, expected, strict=True):
        testing.assert_within(a, b, 1e-11)


def test_every_code_gets_a_gradient_and_not_the_chosen_ones_alone():
    vq = IBQ(8, 100, entropy_weight=0.0)
    vq.codebook.data *= 0.3
    out = vq(torch.randn(10, 8))
    out.quantized.square().sum().backward()
    assert out.indices.unique().numel() <= 10
    assert (vq.codebook.grad.abs().amax(-1) > 0).all()


def test_without_gradients_the_answer_is_the_same_and_has_no_softmax(monkeypatch):
    vq, x = IBQ(6, 20), torch.randn(50, 6)
    expected = vq(x)
    monkeypatch.delattr(ops, "soft_assignment")
    with torch.no_grad():
        actual = vq(x)
    for mine, other in zip(actual, expected, strict=True):
        assert torch.equal(mine, other)


def test_indices_are_of_the_largest_product():
    vq, x = IBQ(16, 200), torch.randn(300, 16)
    products = x.double() @ vq.codebook.detach().double().T
    indices = vq.encode(x)
    testing.assert_within(products[torch.arange(300), indices], products.amax(-1), 1e-5)


def test_training_lowers_the_error():
    vq = IBQ(4, 32)
    data = torch.randn(512, 4)
    optimizer = torch.optim.Adam(vq.parameters(), 0.02)
    before = (vq(data).quantized - data).square().mean()
    for _ in range(100):
        optimizer.zero_grad()
        vq(data).loss.backward()
        optimizer.step()
    assert (vq(data).quantized - data).square().mean() < 0.7 * before


def test_mask_and_bad_rows():
    vq = IBQ(8, 16, inverse_temperature=1.0)
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    padded = torch.where(mask.unsqueeze(-1), x, torch.nan).requires_grad_()
    quantized, indices, loss = vq(padded, mask)
    (quantized.sum() + loss).backward()
    grad = padded.grad
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert (grad[~mask] == 0).all()
    assert torch.isfinite(vq.codebook.grad).all()
    y = x[mask].requires_grad_()
    kept = vq(y)
    (kept.quantized.sum() + kept.loss).backward()
    assert loss.item() == pytest.approx(kept.loss.item(), rel=1e-5)
    testing.assert_within(grad[mask], y.grad.double(), 1e-6)
    assert torch.equal(indices[mask], kept.indices)
    assert torch.equal(vq.decode(indices), quantized)
    assert vq(x, torch.zeros_like(mask)).loss == 0
    # and where nobody says that it is padding, a bad row shows in the loss and stays by itself
    vq.zero_grad()
    out = vq(padded)
    assert out.loss.isnan()
    assert (out.indices[~mask] == 0).all()
    assert torch.equal(out.quantized[mask], kept.quantized)
    (out.quantized.sum() + out.loss).backward()
    assert torch.isfinite(vq.codebook.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_models_have_the_loss_of_wide_ones(dtype):
    vq = IBQ(6, 20).to(dtype)
    wide = IBQ(6, 20)
    wide.load_state_dict(vq.state_dict())
    x = torch.randn(100, 6).to(dtype)
    out, expected = vq(x), wide(x.float())
    assert torch.equal(out.indices, expected.indices)
    testing.assert_within(out.loss, expected.loss.detach().double(), 1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wide(x.float()).loss, expected.loss)


def _loss_and_gradient(rank, meet, x, codes):
    x = x[rank].requires_grad_()
    vq = IBQ(6, 16, inverse_temperature=1.0, entropy_weight=1.0)
    vq.codebook.data.copy_(codes)
    meet()
    loss = vq(x).loss
    loss.backward()
    # evaluation on one process alone must not wait for the other
    if rank == 0:
        vq.eval()(x.detach())
    return {"loss": loss.detach(), "grad": x.grad}


def test_two_processes_have_the_entropy_of_their_joint_batch(tmp_path):
    x, codes = torch.randn(2, 30, 6), torch.randn(16, 6)
    parts = run_two(_loss_and_gradient, tmp_path, x, codes)
    vq = IBQ(6, 16, inverse_temperature=1.0, entropy_weight=1.0)
    vq.codebook.data.copy_(codes)
    joint = x.flatten(0, 1).requires_grad_()
    loss = vq(joint).loss
    loss.backward()
    testing.assert_within((parts[0]["loss"] + parts[1]["loss"]) / 2, loss.detach().double(), 1e-5)
    grad = torch.cat([part["grad"] for part in parts]) / 2
    testing.assert_within(grad, joint.grad.double(), 1e-6)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"codebook_size": 2.5}, TypeError, "codebook_size must be an int, got float"),
        ({"entropy_weight": -1}, ValueError, "entropy_weight must be in"),
        ({"inverse_temperature": 0}, ValueError, "inverse_temperature must be above 0, got 0"),
        ({"inverse_temperature": "a"}, TypeError, "inverse_temperature must be a number"),
        ({"use_entropy_loss": True}, TypeError, "use_entropy_loss"),
    ],
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        IBQ(**{"dim": 8, "codebook_size": 16, **change})
