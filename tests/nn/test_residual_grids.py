"""``ResidualFSQ`` and ``ResidualLFQ``: the contract, the one grid they make, peers and defects."""

import math

import pytest
import torch
import vector_quantize_pytorch as peer

from fastvq import LFQ, ResidualFSQ, ResidualLFQ, testing
from fastvq.testing.contract import QuantizerContract


class TestContractFSQ(QuantizerContract):
    def make(self, channel_dim=-1):
        return ResidualFSQ([8, 5, 2], 3, self.dim, channel_dim=channel_dim)


class TestContractFSQWithoutProjections(QuantizerContract):
    """And with dropout."""

    compiler = "aot_eager"

    dim = 5

    def make(self, channel_dim=-1):
        return ResidualFSQ([8, 5, 5, 5, 3], 4, dropout=0.5, channel_dim=channel_dim)

    def test_checkpoint_of_another_shape_is_refused(self):
        # there is no state that could have another shape
        assert self.make().state_dict() == {}


class TestContractLFQ(QuantizerContract):
    def make(self, channel_dim=-1):
        return ResidualLFQ(2**6, 3, self.dim, channel_dim=channel_dim)


class TestContractLFQWithDropout(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return ResidualLFQ(
            2**6, 4, self.dim, dropout=0.5, inverse_temperature=1.0, channel_dim=channel_dim
        )


MAKERS = [
    pytest.param(lambda q, **kw: ResidualFSQ([2] * 4, q, **kw), id="FSQ"),
    pytest.param(lambda q, **kw: ResidualLFQ(2**4, q, **kw), id="LFQ"),
]


def test_values_by_hand():
    # three levels: -1, 0, 1, then thirds of them; c = 3 / 2
    fsq = ResidualFSQ([3], 2)
    wanted = torch.tensor([[1.2], [0.4], [0.1], [-0.2], [-1.4]])
    x = 1.5 * torch.atanh(wanted / 1.5)
    quantized, indices, loss = fsq(x)
    assert indices.tolist() == [[2, 2], [1, 2], [1, 1], [1, 0], [0, 0]]
    testing.assert_within(quantized.flatten(), torch.tensor([4, 1, 0, -1, -4]).double() / 3, 1e-6)
    assert loss == 0
    # signs of 1, 1/2, 1/4; the first channel is the highest bit
    lfq = ResidualLFQ(4, 3, entropy_weight=0.0, commitment_weight=0.5)
    wanted = torch.tensor([[1.3, -0.3]], dtype=torch.float64)
    quantized, indices, loss = lfq.double()(2 * torch.atanh(wanted / 2))
    assert indices.tolist() == [[0b10, 0b11, 0b01]]
    testing.assert_within(quantized, torch.tensor([[1.25, -0.25]]).double(), 1e-12)
    squares = [0.3**2 + 0.7**2, 0.2**2 + 0.2**2, 0.05**2 + 0.05**2]
    assert loss.item() == pytest.approx(0.5 * sum(squares) / 2)


@pytest.mark.parametrize(("level", "grids"), [(2, 5), (3, 4), (5, 3), (8, 2)])
def test_the_sums_are_one_even_grid(level, grids):
    """L^Q values, evenly spaced, and the digits those of the place in base L."""
    fsq = ResidualFSQ([level], grids).double()
    steps = level**grids
    places = torch.arange(steps)
    digits = torch.stack([places // level**q % level for q in reversed(range(grids))], dim=-1)
    values = fsq.decode(digits).flatten()
    reach = level / (level - 1)
    testing.assert_within(values, reach * ((2 * places + 1).double() / steps - 1), 1e-12)
    # and whatever lies nearest to a value gets it, to the edge of its step
    for shift in (-0.99, 0.0, 0.99):
        inside = (values + shift * reach / steps).unsqueeze(-1)
        x = reach * torch.atanh(inside / reach)
        assert torch.equal(fsq.encode(x), digits), shift
        testing.assert_within(fsq(x).quantized.flatten(), values, 1e-12)


@pytest.mark.parametrize("make", MAKERS)
def test_fewer_levels_are_the_first_ones(make):
    quantizer, x = make(5), torch.randn(400, 4)
    indices = quantizer.encode(x)
    bounded = 2 * torch.tanh(x / 2)
    for q in range(1, 6):
        assert torch.equal(quantizer.encode(x, levels=q), indices[:, :q])
        error = (quantizer.decode(indices[:, :q]) - bounded).abs().max()
        assert error <= 2.0 ** (1 - q) + 1e-5
    padded = torch.where(torch.arange(5) < 2, indices, -1)
    assert torch.equal(quantizer.decode(padded), quantizer.decode(indices[:, :2]))


@pytest.mark.parametrize("make", MAKERS)
def test_many_grids_to_the_resolution_of_float32(make):
    quantizer, x = make(24), torch.randn(2000, 4)
    quantized, indices, _ = quantizer(x)
    assert torch.equal(quantizer.decode(indices), quantized)
    testing.assert_within(quantized, 2 * torch.tanh(x.double() / 2), 1e-6)


def test_is_the_peers_residual_fsq():
    for levels, grids in (([8, 5, 5, 3], 4), ([4, 4, 4], 6), ([2, 3], 3)):
        ours = ResidualFSQ(levels, grids, 16)
        theirs = peer.ResidualFSQ(levels=levels, num_quantizers=grids, dim=16)
        ours.load_state_dict(theirs.state_dict())
        x = torch.randn(4, 500, 16).requires_grad_()
        y = x.detach().clone().requires_grad_()
        quantized, indices, _ = ours(x)
        expected, expected_indices = theirs(y)
        same = (indices == expected_indices).all(-1)
        # a factor of L^-q is not exact for all L: a rest on the edge of a step may fall either way
        assert same.double().mean() > 0.999
        testing.assert_within(quantized[same], expected[same].detach().double(), 1e-5)
        decoded = theirs.get_output_from_indices(indices)
        testing.assert_within(ours.decode(indices), decoded.detach().double(), 1e-5)


def test_gradient_is_that_of_the_bound_however_many_grids():
    # Q times that for the peer, each of whose levels passes it on
    for grids in (1, 4):
        fsq = ResidualFSQ([8, 5], grids).double()
        x = torch.randn(50, 2, dtype=torch.float64, requires_grad=True)
        cotangent = torch.randn_like(x)
        (fsq(x).quantized * cotangent).sum().backward()
        reach = torch.tensor([8 / 7, 5 / 4], dtype=torch.float64)
        slope = 1 - torch.tanh(x.detach() / reach) ** 2
        testing.assert_within(x.grad, cotangent * slope, 1e-12)


def test_codes_are_the_peers_residual_lfq():
    """Fed what the bound makes of x: the peer clamps inside of its levels alone, if at all."""
    ours = ResidualLFQ(2**6, 4)
    theirs = peer.ResidualLFQ(dim=6, codebook_size=2**6, num_quantizers=4)
    x = torch.randn(4, 100, 6)
    quantized, indices, _ = ours(x)
    expected, expected_indices, _ = theirs(2 * torch.tanh(x / 2))
    assert torch.equal(indices, expected_indices)
    testing.assert_within(quantized, expected.double(), 1e-6)
    decoded = theirs.get_output_from_indices(indices)
    testing.assert_within(ours.decode(indices), decoded.double(), 1e-6)


def test_loss_is_the_sum_of_the_entropies_over_each_levels_codes():
    """Value and gradient against the softmax over all codes, in float64."""
    weights = {"entropy_weight": 0.7, "diversity": 1.3, "commitment_weight": 0.4}
    lfq = ResidualLFQ(2**4, 3, inverse_temperature=2.0, **weights).double()
    x = torch.randn(60, 4, dtype=torch.float64, requires_grad=True)
    loss = lfq(x).loss
    (grad,) = torch.autograd.grad(loss, x)
    rest, expected = 2 * torch.tanh(x / 2), 0.0
    places = 2 ** torch.arange(3, -1, -1)
    signs = (torch.arange(16).unsqueeze(-1) // places % 2) * 2.0 - 1
    for q in range(3):
        codes = signs.double() / 2**q
        distances = (rest.unsqueeze(1) - codes).square().sum(-1)
        p = torch.log_softmax(-2.0 * distances, dim=-1)
        mean = torch.logsumexp(p, dim=0) - math.log(len(p))
        entropy = -(p.exp() * p).sum(-1).mean() + 1.3 * (mean.exp() * mean).sum()
        chosen = codes[distances.argmin(-1)]
        expected = expected + 0.7 * entropy + 0.4 * (rest - chosen).square().mean()
        rest = rest - chosen
    testing.assert_within(loss, expected.detach(), 1e-12)
    testing.assert_within(grad, torch.autograd.grad(expected, x)[0], 1e-11)


def test_one_level_is_lfq_of_bounded_vectors():
    x = torch.randn(200, 6)
    out, expected = ResidualLFQ(2**6, 1)(x), LFQ(2**6)(2 * torch.tanh(x / 2))
    assert torch.equal(out.indices.squeeze(-1), expected.indices)
    assert torch.equal(out.quantized, expected.quantized)
    testing.assert_within(out.loss, expected.loss.double(), 1e-6)


def test_training_stays_finite():
    # NaN within 200 steps for a peer: lucidrains/vector-quantize-pytorch#196
    model = torch.nn.Sequential(
        torch.nn.Linear(16, 32), torch.nn.ReLU(), ResidualLFQ(2**8, 8, 32, dropout=0.2)
    )
    head = torch.nn.Linear(32, 16)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, 1e-2)
    data = torch.randn(256, 16) * 30
    for _ in range(200):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(data)
            loss = (head(out.quantized) - data).square().mean() + out.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() for p in parameters)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_models_have_the_codes_of_float32(make, dtype):
    x = torch.randn(300, 4).to(dtype)
    out, expected = make(6).to(dtype)(x), make(6)(x.float())
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(out.quantized, expected.quantized.to(dtype))


@pytest.mark.parametrize("make", MAKERS)
def test_dropout_takes_levels_from_samples_in_training_only(make):
    quantizer, x = make(4, dropout=0.5), torch.randn(400, 3, 4)
    quantized, indices, _ = quantizer(x)
    levels = (indices >= 0).sum(-1)
    assert (levels == levels[:, :1]).all()
    share = torch.bincount(levels[:, 0], minlength=5).double() / 400
    # half take all, the other half one to four alike
    for actual, expected in zip(share.tolist(), (0, 0.125, 0.125, 0.125, 0.625), strict=True):
        assert abs(actual - expected) < 0.08
    assert torch.equal(quantizer.decode(indices), quantized)
    assert (quantizer.eval()(x).indices >= 0).all()


@pytest.mark.parametrize("make", MAKERS)
def test_mask(make):
    quantizer = make(3, dim=8)
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    x[~mask] = torch.nan
    x.requires_grad_()
    quantized, indices, loss = quantizer(x, mask)
    (quantized.sum() + loss).backward()
    assert (indices[~mask] == -1).all()
    assert (quantized[~mask] == 0).all()
    assert (x.grad[~mask] == 0).all()
    assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())
    kept = quantizer(x[mask])
    assert loss.item() == pytest.approx(kept.loss.item(), rel=1e-5)
    assert torch.equal(indices[mask], kept.indices)
    assert torch.equal(quantizer.decode(indices), quantized)


@pytest.mark.parametrize("make", MAKERS)
def test_a_bad_row_spoils_itself_alone(make):
    quantizer, x = make(3), torch.randn(20, 4)
    x[3, 2], x[7, 0] = torch.nan, torch.inf
    good = torch.isfinite(x).all(-1)
    x.requires_grad_()
    quantized, indices, loss = quantizer(x)
    (quantized.sum() + loss).backward()
    assert loss.isnan()
    assert (indices[~good] == 0).all()
    assert (x.grad[~good] == 0).all()
    y = x.detach()[good].requires_grad_()
    out = quantizer(y)
    (out.quantized.sum() + out.loss).backward()
    testing.assert_within(x.grad[good], y.grad.double(), 1e-6)
    assert torch.equal(quantized[good], out.quantized)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: ResidualFSQ([], 2), ValueError, "levels must hold at least one number"),
        (lambda: ResidualFSQ([8, 1], 2), ValueError, "at least 2, got 1"),
        (lambda: ResidualFSQ([8, 2.0], 2), TypeError, "each of levels must be an int"),
        (lambda: ResidualFSQ([8], 0), ValueError, "num_quantizers must be at least 1, got 0"),
        (lambda: ResidualFSQ([8], 9), ValueError, "at most 16777216 steps.*num_quantizers = 9"),
        (lambda: ResidualFSQ([8], 2, dropout=1.0), ValueError, r"dropout must be in \[0, 1\)"),
        (lambda: ResidualLFQ(100, 2), ValueError, "power of two, 2 or more, got 100"),
        (lambda: ResidualLFQ(64, 25), ValueError, "num_quantizers = 25"),
        (lambda: ResidualLFQ(64, 2, entropy_weight=-1), ValueError, "entropy_weight must be in"),
    ],
)
def test_bad_arguments(make, error, text):
    with pytest.raises(error, match=text):
        make()


@pytest.mark.parametrize("make", MAKERS)
def test_bad_input_is_named(make):
    quantizer = make(3)
    with pytest.raises(ValueError, match=r"levels must be in \[1, 3\], got 4"):
        quantizer.encode(torch.randn(2, 4), levels=4)
    with pytest.raises(ValueError, match=r"\[\.\.\., q\] with q in \[1, 3\], got \[5, 4\]"):
        quantizer.decode(torch.zeros(5, 4, dtype=torch.int64))
