"""``QINCo``: the contract, the method written plainly, and residual quantization at the start."""

import pytest
import torch

from fastvq import Given, QINCo, ResidualVQ, Uniform, testing
from fastvq.nn import _neural_codes
from fastvq.nn._neural_codes import Step, codes_of, nearest_neural
from fastvq.testing.contract import QuantizerContract

from .processes import run_two


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return QINCo(self.dim, 24, 2, blocks=1, hidden=20, channel_dim=channel_dim)


def shaken(vq, size=0.2):
    """With networks far from the nothing they start as."""
    for parameter in (vq.mix, vq.bias, vq.up, vq.down):
        parameter.data.normal_().mul_(size)
    return vq


def make(steps=3, **kwargs):
    given = Given(torch.randn(steps, 12, 6) * 0.6 ** torch.arange(steps).view(-1, 1, 1))
    return shaken(QINCo(6, 12, steps, blocks=2, hidden=10, start=given, **kwargs))


def network(vq, q, base, decoded):
    """f of one base code and one decoded vector, layer by layer."""
    z = base + vq.mix[q - 1] @ torch.cat([base, decoded]) + vq.bias[q - 1]
    for up, down in zip(vq.up[q - 1], vq.down[q - 1], strict=True):
        z = z + down @ torch.relu(up @ z)
    return z


def test_is_the_plain_form():
    """Every candidate of every vector, the losses, and the gradients, in float64."""
    vq = make(revival=None, codebook_weight=0.7, commitment_weight=0.3).double()
    x = torch.randn(20, 6, dtype=torch.float64, requires_grad=True)
    quantized, indices, loss = vq(x)
    cotangent = torch.randn_like(x)
    wanted = [x, *vq.parameters()]
    actual = torch.autograd.grad((quantized * cotangent).sum() + loss, wanted)
    decoded = [torch.zeros(6, dtype=torch.float64) for _ in x]
    expected = 0.0
    for q in range(3):
        for n, row in enumerate(x):
            candidates = [
                base if q == 0 else network(vq, q, base, decoded[n]) for base in vq.codebook[q]
            ]
            distances = torch.stack([(row - decoded[n] - c).square().sum() for c in candidates])
            assert indices[n, q] == distances.argmin()
            decoded[n] = decoded[n] + candidates[distances.argmin()]
        total = torch.stack(decoded)
        expected = expected + 0.7 * (x.detach() - total).square().mean()
        expected = expected + 0.3 * (x - total.detach()).square().mean()
    testing.assert_within(quantized, total.detach(), 1e-12)
    testing.assert_within(loss, expected.detach(), 1e-12)
    plain = torch.autograd.grad((x * cotangent).sum() + expected, wanted)
    for a, b in zip(actual, plain, strict=True):
        testing.assert_within(a, b, 1e-11)


def test_without_networks_it_is_residual_quantization():
    given = torch.randn(3, 20, 8) * 0.6 ** torch.arange(3).view(-1, 1, 1)
    vq = QINCo(8, 20, 3, blocks=1, hidden=8, start=Given(given))
    vq.down.data.zero_()
    rvq = ResidualVQ(8, 20, 3, start=Given(given))
    x = torch.randn(200, 8)
    out, expected = vq.eval()(x), rvq.eval()(x)
    assert torch.equal(out.indices, expected.indices)
    testing.assert_within(out.quantized, expected.quantized.double(), 1e-6)


def test_starts_close_to_residual_quantization():
    torch.manual_seed(0)
    x = torch.randn(2000, 8)
    vq, rvq = QINCo(8, 32, 3, hidden=32), ResidualVQ(8, 32, 3)
    errors = []
    for quantizer in (vq, rvq):
        torch.manual_seed(1)
        quantizer(x)
        assert quantizer.book.started
        errors.append((quantizer.eval()(x).quantized - x).square().mean().item())
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def test_training_does_better_than_fixed_codes():
    """Data whose second half says nothing but given the first: a fixed codebook cannot follow."""
    torch.manual_seed(0)
    side = torch.randn(1000, 1).sign()
    detail = torch.randn(1000, 2) * torch.tensor([[1.0, 0.05]])
    swapped = torch.where(side > 0, detail, detail.flip(-1))
    data = torch.cat([4 * side, swapped], dim=-1)
    vq = QINCo(3, 4, 2, blocks=1, hidden=16, start=Uniform(1.0))
    rvq = ResidualVQ(3, 4, 2, start=Given(torch.randn(2, 4, 3)))
    optimizer = torch.optim.Adam(vq.parameters(), 1e-2)
    # the first step says which side it is, and no more
    first = torch.tensor([[4.0, 0, 0], [-4.0, 0, 0], [90.0, 9, 9], [90.0, 9, 8]])
    vq.book.vectors.data[0] = first
    rvq.book.vectors[0] = first
    vq.book.revival = rvq.book.revival = None
    for _ in range(200):
        optimizer.zero_grad()
        vq(data).loss.backward()
        optimizer.step()
        rvq(data)
    vq.eval()
    rvq.eval()
    indices = vq.encode(data)
    errors = [(vq.decode(indices[:, :q]) - data).square().mean() for q in (1, 2)]
    assert torch.equal(vq.encode(data, levels=1), indices[:, :1])
    assert errors[1] < 0.5 * errors[0]
    # four codes for one axis in place of four for two; descent finds some of that at least: three
    # seeds ended at 0.79, 0.46 and 0.85 of the fixed codes' error
    assert errors[1] < 0.9 * (rvq(data).quantized - data).square().mean()


def _train(rank, meet):
    torch.manual_seed(0)
    vq = QINCo(6, 30, 3, blocks=1, hidden=8)
    meet()
    torch.manual_seed(100 + rank)
    for step in range(4):
        x = torch.randn(40, 6)
        # an empty batch on one process must not leave the other waiting
        vq(x[:0] if step == 2 and rank == 0 else x)
    return vq.state_dict()


def test_two_processes_share_their_codes_and_counts(tmp_path):
    first, second = run_two(_train, tmp_path)
    assert first["book.started"]
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_chunks_change_nothing(monkeypatch):
    x, decoded = torch.randn(30, 6), torch.randn(30, 6)
    base, mix, bias = torch.randn(12, 6), torch.randn(6, 12) * 0.3, torch.randn(6)
    up, down = torch.randn(2, 10, 6) * 0.3, torch.randn(2, 6, 10) * 0.3
    arguments = (x, decoded, base, mix, bias, up, down)
    whole = nearest_neural(*arguments)
    # the one that codes_of finds, which never splits its first layer
    step = Step(mix, bias, up, down)
    every = torch.stack([codes_of(c.expand(30, 6), decoded, step) for c in base], dim=1)
    distances = (every.double() - (x - decoded).double().unsqueeze(1)).square().sum(-1)
    chosen = distances.gather(1, whole.unsqueeze(1)).squeeze(1)
    testing.assert_within(chosen, distances.amin(-1), 1e-5)
    monkeypatch.setattr(_neural_codes, "_WORKSPACE", 12 * 16 * 7)
    assert torch.equal(nearest_neural(*arguments), whole)


@pytest.mark.parametrize("n", [5, 0])
def test_the_search_is_an_op(n):
    base, mix, bias = torch.randn(12, 6), torch.randn(6, 12), torch.randn(6)
    up, down = torch.randn(2, 10, 6), torch.randn(2, 6, 10)
    x = torch.randn(n, 6)
    torch.library.opcheck(nearest_neural, (x, x, base, mix, bias, up, down))


def test_dead_codes_come_back_as_what_their_step_sees():
    torch.manual_seed(0)
    given = torch.randn(2, 12, 6)
    given[0] += 50
    given[1, 6:] = 1e4  # never the nearest
    vq = QINCo(6, 12, 2, blocks=1, hidden=8, start=Given(given))
    for _ in range(600):
        vq(torch.randn(64, 6) + 50)
        if vq.codebook[1].abs().max() < 100:
            break
    assert (vq.codebook[0] - 50).abs().max() < 10
    assert vq.codebook[1].abs().max() < 10, "a data vector came back, not what step 0 left of it"
    assert vq.usage().perplexity > 1


def test_mask_and_bad_rows():
    vq = make(revival=None)
    x, mask = torch.randn(3, 7, 6), torch.rand(3, 7) > 0.4
    padded = torch.where(mask.unsqueeze(-1), x, torch.nan).requires_grad_()
    quantized, indices, loss = vq(padded, mask)
    (quantized.sum() + loss).backward()
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert (padded.grad[~mask] == 0).all()
    grads = [p.grad.clone() for p in vq.parameters()]
    assert all(torch.isfinite(grad).all() for grad in grads)
    vq.zero_grad()
    kept = vq(x[mask])
    kept.loss.backward()
    assert loss.item() == pytest.approx(kept.loss.item(), rel=1e-5)
    for grad, parameter in zip(grads, vq.parameters(), strict=True):
        testing.assert_within(grad, parameter.grad.double(), 1e-5)
    assert torch.equal(indices[mask], kept.indices)
    decoded = vq.decode(indices)
    testing.assert_within(decoded, quantized.detach().double(), 1e-5)
    assert (decoded[~mask] == 0).all()
    # and where nobody says that it is padding, a bad row shows in the loss and stays by itself
    vq.zero_grad()
    out = vq(padded)
    assert out.loss.isnan()
    assert (out.indices[~mask] == 0).all()
    testing.assert_within(out.quantized[mask], kept.quantized.detach().double(), 1e-5)
    (out.quantized.sum() + out.loss).backward()
    assert all(torch.isfinite(p.grad).all() for p in vq.parameters())


def test_bad_rows_and_padding_count_for_no_code():
    vq = make(revival=None)
    x, mask = torch.randn(3, 7, 6), torch.ones(3, 7, dtype=torch.bool)
    x[1, 2, 3], mask[0, :3] = torch.nan, False
    before = vq.book.cluster_size.sum(-1)
    vq(x, mask)
    # each step's count moves a hundredth of the way to the 17 rows that are left
    expected = 0.99 * before.double() + 0.01 * 17
    testing.assert_within(vq.book.cluster_size.sum(-1), expected, 1e-5)


def test_one_step_has_no_network():
    vq = QINCo(6, 12, 1, start=Given(torch.randn(12, 6).unsqueeze(0)))
    x = torch.randn(40, 6)
    assert not testing.wrong_codes(x, vq.codebook[0].detach(), vq.encode(x)[:, 0]).any()
    vq(x).loss.backward()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"num_quantizers": 2.0}, TypeError, "num_quantizers must be an int, got float"),
        ({"blocks": 0}, ValueError, "blocks must be at least 1, got 0"),
        ({"hidden": -1}, ValueError, "hidden must be at least 1, got -1"),
        ({"codebook_weight": -1}, ValueError, "codebook_weight must be in"),
        ({"start": "kmeans"}, TypeError, "start must be one of"),
        ({"beam_size": 4}, TypeError, "beam_size"),
    ],
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        QINCo(**{"dim": 8, "codebook_size": 16, "num_quantizers": 2, **change})
