"""``GumbelVQ``: the contract, the distribution it draws from, and the plain relaxation."""

import math

import pytest
import torch
from torch.nn import functional

from fastvq import GumbelVQ, testing
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return GumbelVQ(self.dim, 32, channel_dim=channel_dim)


class TestContractSoft(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return GumbelVQ(self.dim, 20, temperature=0.5, hard=False, channel_dim=channel_dim)


@pytest.fixture
def seed(monkeypatch):
    """The seed of the noise, fixed: what the quantizer draws, a test can draw."""
    monkeypatch.setattr("fastvq.nn.gumbel_vq._SEEDS", 1)
    return 0


@pytest.mark.parametrize("hard", [True, False])
def test_is_the_plain_form(seed, hard):
    """Value, loss and gradients in float64, with all probabilities in memory."""
    vq = GumbelVQ(6, 9, temperature=0.7, hard=hard, kl_weight=0.3).double()
    x = torch.randn(50, 6, dtype=torch.float64, requires_grad=True)
    quantized, indices, loss = vq(x)
    generator = torch.Generator().manual_seed(seed)
    noise = -torch.empty(50, 9, dtype=torch.float64).exponential_(generator=generator).log()
    logits = vq.logits(x)
    soft = torch.softmax((logits + noise) / 0.7, dim=-1)
    assert torch.equal(indices, soft.argmax(-1))
    choice = functional.one_hot(indices, 9) + soft - soft.detach() if hard else soft
    expected = choice @ vq.codebook
    q = torch.softmax(logits, dim=-1)
    divergence = (q * torch.log(q * 9)).sum(-1).mean()
    testing.assert_within(quantized, expected.detach(), 1e-12)
    testing.assert_within(loss, 0.3 * divergence.detach(), 1e-12)
    if hard:
        assert torch.equal(quantized, vq.codebook[indices])
    cotangent = torch.randn_like(quantized)
    wanted = [x, *vq.parameters()]
    actual = torch.autograd.grad((quantized * cotangent).sum() + 3 * loss, wanted)
    plain = torch.autograd.grad((expected * cotangent).sum() + 3 * 0.3 * divergence, wanted)
    for a, b in zip(actual, plain, strict=True):
        testing.assert_within(a, b, 1e-11)


def test_draws_from_the_softmax():
    vq, x = GumbelVQ(3, 4), torch.randn(1, 3)
    p = torch.softmax(vq.logits(x), dim=-1)[0].detach()
    n = 40_000
    share = torch.bincount(vq(x.expand(n, 3)).indices, minlength=4) / n
    # four standard errors
    assert ((share - p).abs() < 4 * (p * (1 - p) / n).sqrt()).all()
    assert not torch.equal(vq(x.expand(n, 3)).indices, vq(x.expand(n, 3)).indices)


def test_eval_is_the_most_probable_code():
    # a peer draws in eval, and encodes the same image into other codes each time
    vq, x = GumbelVQ(6, 20).eval(), torch.randn(300, 6)
    indices = vq(x).indices
    logits = vq.logits(x).detach()
    best = logits.amax(-1)
    testing.assert_within(logits[torch.arange(300), indices], best.double(), 1e-5)
    assert torch.equal(vq(x).indices, indices)
    assert torch.equal(vq.encode(x), indices)


def test_temperature_may_be_changed(seed):
    vq, x = GumbelVQ(6, 9, hard=False), torch.randn(50, 6)
    warm = vq(x).quantized
    vq.temperature = 1e-3
    cold = vq(x)
    assert not torch.allclose(warm, cold.quantized)
    # near zero the mean is the code that was drawn
    near = (cold.quantized - vq.codebook[cold.indices]).abs().amax(-1) < 1e-3
    assert near.double().mean() > 0.9


def test_uniform_logits_have_no_loss():
    vq = GumbelVQ(6, 9, kl_weight=1.0)
    vq.logits.weight.data.zero_()
    vq.logits.bias.data.fill_(3.0)
    assert abs(vq(torch.randn(50, 6)).loss.item()) < 1e-6
    vq.logits.bias.data[0] = 1e4
    assert vq(torch.randn(50, 6)).loss.item() == pytest.approx(math.log(9), rel=1e-6)


def test_training_puts_the_codes_to_use():
    vq = GumbelVQ(4, 16, kl_weight=1e-3)
    optimizer = torch.optim.Adam(vq.parameters(), 0.05)
    centres = torch.randn(8, 4) * 2
    data = centres[torch.randint(8, (512,))] + 0.1 * torch.randn(512, 4)
    for step in range(200):
        vq.temperature = max(0.2, 0.98**step)
        out = vq(data)
        optimizer.zero_grad()
        ((out.quantized - data).square().mean() + out.loss).backward()
        optimizer.step()
    error = (vq.eval()(data).quantized - data).square().mean()
    assert error < 0.1 * data.var()


def test_mask_and_bad_rows(seed):
    vq = GumbelVQ(8, 16, kl_weight=0.5)
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    padded = torch.where(mask.unsqueeze(-1), x, torch.nan).requires_grad_()
    quantized, indices, loss = vq(padded, mask)
    (quantized.sum() + loss).backward()
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert (padded.grad[~mask] == 0).all()
    assert (padded.grad[mask].abs().amax(-1) > 0).all()
    assert all(torch.isfinite(p.grad).all() for p in vq.parameters())
    plain = vq(x)
    assert torch.equal(indices[mask], plain.indices[mask])
    assert loss.item() == pytest.approx(vq.eval()(x[mask]).loss.item(), rel=1e-5)
    assert torch.equal(vq.decode(indices), quantized)
    assert vq(x, torch.zeros_like(mask)).loss == 0
    # and where nobody says that it is padding, a bad row shows in the loss alone
    padded.grad = None
    vq.zero_grad()
    out = vq.train()(padded)
    assert out.loss.isnan()
    assert (out.indices[~mask] == 0).all()
    assert torch.equal(out.quantized[mask], plain.quantized[mask])
    out.quantized.sum().backward()
    assert (padded.grad[~mask] == 0).all()
    assert all(
        torch.isfinite(p.grad).all() for p in (padded, *vq.parameters()) if p.grad is not None
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_models_draw_as_wide_ones_of_their_weights(seed, dtype):
    vq = GumbelVQ(6, 20).to(dtype)
    wide = GumbelVQ(6, 20)
    wide.load_state_dict(vq.state_dict())
    x = torch.randn(100, 6).to(dtype)
    out, expected = vq(x), wide(x.float())
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.loss, expected.loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wide(x.float()).loss, expected.loss)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"codebook_size": 2.5}, TypeError, "codebook_size must be an int, got float"),
        ({"temperature": 0}, ValueError, "temperature must be above 0, got 0"),
        ({"temperature": "a"}, TypeError, "temperature must be a number"),
        ({"kl_weight": -1}, ValueError, "kl_weight must be in"),
        ({"straight_through": True}, TypeError, "straight_through"),
    ],
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        GumbelVQ(**{"dim": 8, "codebook_size": 16, **change})
