"""``ResidualVQ``: the contract, the levels, the learning of each, and dropout of levels."""

import itertools

import pytest
import torch

import fastvq
from fastvq import EMA, Frozen, Given, Gradient, ResidualVQ, Uniform, ops
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    training_compiler = "inductor"

    def make(self, channel_dim=-1):
        return ResidualVQ(self.dim, 32, 3, channel_dim=channel_dim)


class TestContractWithEverything(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return ResidualVQ(
            self.dim, 24, 4, codebook_dim=6, learning=Gradient(), dropout=0.5,
            channel_dim=channel_dim,
        )  # fmt: skip


class TestContractShared(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return ResidualVQ(
            self.dim, 24, 3, shared_codebook=True, gradient="rotation", channel_dim=channel_dim
        )


def codebooks(levels=3, k=20, d=8):
    scale = 0.6 ** torch.arange(levels).view(-1, 1, 1)
    return torch.randn(levels, k, d) * scale


def test_is_the_op():
    given, x = codebooks(), torch.randn(5, 7, 8)
    rvq = ResidualVQ(8, 20, 3, start=Given(given), commitment_weight=0.5).eval()
    quantized, indices, loss = rvq(x)
    expected = ops.residual(x, given)
    assert torch.equal(quantized, expected.quantized)
    assert torch.equal(indices, expected.indices)
    assert torch.equal(loss, 0.5 * expected.commitment_losses.sum())


def test_more_levels_leave_less():
    torch.manual_seed(0)
    rvq = ResidualVQ(8, 32, 5)
    data = torch.randn(2000, 8)
    for _ in range(10):
        rvq(data)
    rvq.eval()
    indices = rvq.encode(data)
    errors = [(rvq.decode(indices[..., : q + 1]) - data).square().mean() for q in range(5)]
    # a level of 32 codes in 8 dimensions keeps well over a fifth of what is left
    for more, less in itertools.pairwise(errors):
        assert less < 0.8 * more
    assert torch.equal(rvq.encode(data, levels=2), indices[..., :2])


def test_every_level_starts_from_its_own_residuals():
    torch.manual_seed(0)
    x = torch.randn(500, 4) * 3 + 100
    rvq = ResidualVQ(4, 16, 3, learning=EMA(decay=0.999), revival=None)
    rvq(x)
    assert rvq.book.started
    first, *later = rvq.codebook
    assert (first.mean(0) - 100).abs().max() < 3
    for codes in later:
        assert codes.mean(0).abs().max() < 3, "a later level must not hold the mean of the data"


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_ema_of_each_level_is_the_papers(decay):
    given, x = codebooks(), torch.randn(400, 8)
    rvq = ResidualVQ(8, 20, 3, start=Given(given), learning=EMA(decay=decay), revival=None)
    indices = rvq(x).indices
    rest = x.double()
    for q in range(3):
        index = indices[:, q]
        counts = torch.bincount(index, minlength=20).double()
        sums = torch.zeros(20, 8, dtype=torch.float64).index_add_(0, index, rest)
        size = decay * 1.0 + (1 - decay) * counts
        mean = (decay * given[q].double() + (1 - decay) * sums) / size.unsqueeze(-1)
        expected = torch.where((counts > 0).unsqueeze(-1), mean, given[q].double())
        torch.testing.assert_close(rvq.codebook[q].double(), expected, rtol=1e-5, atol=1e-5)
        rest = rest - given[q][index].double()


def test_gradient_learning_moves_every_level():
    rvq = ResidualVQ(8, 20, 3, start=Given(codebooks()), learning=Gradient())
    rvq(torch.randn(300, 8)).loss.backward()
    grad = rvq.book.vectors.grad
    assert (grad.flatten(1).abs().amax(-1) > 0).all()


def test_dead_codes_of_a_level_come_back_as_its_residuals():
    torch.manual_seed(0)
    given = codebooks(2, 20, 8)
    given[0] += 50
    given[1, 10:] = 1e4  # never the nearest
    rvq = ResidualVQ(8, 20, 2, start=Given(given), learning=EMA(decay=0.5))
    for _ in range(8):
        rvq(torch.randn(400, 8) + 50)
    assert (rvq.codebook[0] - 50).abs().max() < 10
    assert rvq.codebook[1].abs().max() < 10, "a data vector came back, not what level 0 left of it"


def test_dropout_takes_levels_from_samples_in_training_only():
    torch.manual_seed(0)
    rvq = ResidualVQ(8, 20, 4, start=Given(codebooks(4)), dropout=0.5)
    x = torch.randn(400, 3, 8)
    indices = rvq(x).indices
    levels = (indices >= 0).sum(-1)
    assert (levels == levels[:, :1]).all(), "a sample takes the same levels everywhere"
    share = torch.bincount(levels[:, 0], minlength=5).double() / 400
    # half take all, the other half one to four alike: 1/8, 1/8, 1/8 and 5/8
    for actual, expected in zip(share.tolist(), (0, 0.125, 0.125, 0.125, 0.625), strict=True):
        assert abs(actual - expected) < 0.08
    first = (indices < 0).int().argmax(-1)  # where it ends, it ends
    assert ((indices[..., -1] < 0) == (first > 0)).all()
    assert (rvq.eval()(x).indices >= 0).all()


def test_mask_leaves_padding_out():
    rvq = ResidualVQ(8, 20, 3, codebook_dim=4)
    x, mask = torch.randn(4, 10, 8), torch.rand(4, 10) > 0.4
    rvq(x, mask)
    padded = torch.where(mask.unsqueeze(-1), x, torch.nan)
    other = ResidualVQ(8, 20, 3, codebook_dim=4)
    other.load_state_dict(rvq.state_dict())
    torch.manual_seed(1)
    a = rvq(x, mask)
    torch.manual_seed(1)
    b = other(padded, mask)
    for left, right in zip(a, b, strict=True):
        assert torch.equal(left, right)
    assert (a.indices[~mask] == -1).all()
    assert not a.quantized[~mask].any()
    assert not rvq.eval().decode(a.indices)[~mask].any()
    for name, value in rvq.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_settings_of_the_paper_train():
    torch.manual_seed(0)
    rvq = ResidualVQ(6, 16, 2, learning=Gradient(), start=Uniform(), revival=None)
    optimizer = torch.optim.Adam(rvq.parameters(), lr=0.02)
    data = torch.randn(300, 6)
    before = (rvq.eval()(data).quantized - data).square().mean()
    for _ in range(60):
        optimizer.zero_grad()
        rvq.train()(data).loss.backward()
        optimizer.step()
    assert (rvq.eval()(data).quantized - data).square().mean() < 0.7 * before


def test_frozen_never_changes():
    given = codebooks()
    rvq = ResidualVQ(8, 20, 3, start=Given(given), learning=Frozen())
    rvq(torch.randn(100, 8))
    assert torch.equal(rvq.codebook, given)


def test_rotation_is_that_of_the_sum_of_codes(backend):
    given, x = codebooks(), torch.randn(5, 7, 8, requires_grad=True)
    cotangent = torch.randn_like(x)
    out = ops.residual(x, given, gradient="rotation")
    assert torch.equal(out.quantized, ops.residual(x, given).quantized)
    terms = out.quantized, out.commitment_losses
    (grad,) = torch.autograd.grad(terms, x, (cotangent, torch.tensor([0.1, 0.2, 0.3])))
    total = out.quantized.detach().flatten(0, 1)
    as_code = ops.quantize(x.flatten(0, 1), total, torch.arange(35), gradient="rotation")
    (turned,) = torch.autograd.grad(as_code.quantized, x, cotangent.flatten(0, 1))
    losses = ops.residual(x, given).commitment_losses
    (pulled,) = torch.autograd.grad(losses, x, torch.tensor([0.1, 0.2, 0.3]))
    fastvq.testing.assert_within(grad, (turned + pulled).double(), 1e-6)


def test_shared_codebook_learns_from_all_levels():
    given, x = torch.randn(20, 8), torch.randn(300, 8)
    options = {"start": Given(given), "revival": None, "shared_codebook": True}
    rvq = ResidualVQ(8, 20, 3, learning=EMA(decay=0.5), **options)
    assert rvq.codebook.shape == (3, 20, 8)
    indices = rvq(x).indices
    rest, counts = x.double(), torch.zeros(20, dtype=torch.float64)
    sums = torch.zeros(20, 8, dtype=torch.float64)
    for index in indices.unbind(-1):
        counts += torch.bincount(index, minlength=20)
        sums.index_add_(0, index, rest)
        rest = rest - given.double()[index]
    size = 0.5 + 0.5 * counts
    mean = (0.5 * given.double() + 0.5 * sums) / size.unsqueeze(-1)
    expected = torch.where((counts > 0).unsqueeze(-1), mean, given.double())
    torch.testing.assert_close(rvq.codebook[0].double(), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(rvq.codebook[0], rvq.codebook[2])
    learned = ResidualVQ(8, 20, 3, learning=Gradient(), **options)
    learned(x).loss.backward()
    assert learned.book.vectors.grad.shape == (1, 20, 8)


def test_dead_codes_of_a_shared_codebook_come_back_as_residuals_of_all_levels():
    given = torch.randn(20, 4)
    given[10:] = 1e4
    start = Given(given + 50 * (torch.arange(20) < 5).unsqueeze(-1))
    rvq = ResidualVQ(4, 20, 2, start=start, learning=EMA(decay=0.5), shared_codebook=True)
    for _ in range(8):
        rvq(torch.randn(400, 4) + 50)
    codes = rvq.codebook[0]
    assert codes.abs().max() < 100
    assert (codes[10:].norm(dim=-1) > 50).any()
    assert (codes[10:].norm(dim=-1) < 50).any()


def test_beam_never_leaves_more():
    rvq = ResidualVQ(8, 20, 3, start=Given(codebooks())).eval()
    x = torch.randn(300, 8)
    assert torch.equal(rvq.encode(x, beam=1), rvq(x).indices)
    errors = [(rvq.decode(rvq.encode(x, beam=b)) - x).square().sum(-1) for b in (1, 5)]
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
    assert errors[1].mean() < errors[0].mean()
    assert torch.equal(rvq.encode(x, levels=1, beam=5), rvq.encode(x, levels=1))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="straight_through, rotation, got 'diveq'"):
        ResidualVQ(8, 20, 3, gradient="diveq")
    with pytest.raises(ValueError, match=r"num_quantizers.*got 0"):
        ResidualVQ(8, 20, 0)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        ResidualVQ(8, 20, 3, dropout=1.0)
    rvq = ResidualVQ(8, 20, 3)
    with pytest.raises(ValueError, match=r"levels must be in \[1, 3\], got 4"):
        rvq.encode(torch.randn(2, 8), levels=4)
    with pytest.raises(ValueError, match=r"\[\.\.\., q\] with q in \[1, 3\], got \[5, 4\]"):
        rvq.decode(torch.zeros(5, 4, dtype=torch.int64))
    assert "ResidualVQ" in fastvq.__all__
