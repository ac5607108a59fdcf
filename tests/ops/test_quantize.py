"""``quantize``: the lookup, both losses and their gradients, by formula."""

import pytest
import torch
from torch.library import opcheck

from fastvq import testing
from fastvq.ops import nearest, quantize

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# relative error of one rounding to the dtype, times a few operations
ROUNDING = {
    torch.float32: 4 * 2.0**-24,
    torch.float16: 2 * 2.0**-11,
    torch.bfloat16: 2 * 2.0**-8,
    torch.float64: 4 * 2.0**-53,
}


def expected_loss(x, codebook, indices):
    """Float64 mean over the rows that have a code, for x ``[N, D]``."""
    valid = indices >= 0
    if not valid.any():
        return torch.zeros((), dtype=torch.float64)
    return (x[valid].double() - codebook[indices[valid]].double()).square().mean()


def leaves(n=40, k=12, d=10, dtype=torch.float32):
    x, codebook = testing.gaussian(n, k, d, dtype=dtype)
    indices = nearest(x, codebook).indices
    return x.requires_grad_(), codebook.requires_grad_(), indices


def test_by_hand(backend):
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0], [9.0, 9.0]], requires_grad=True)
    codebook = torch.tensor([[0.0, 0.0], [1.0, 4.0]], requires_grad=True)
    out = quantize(x, codebook, torch.tensor([1, 1, -1]))
    assert out.quantized.tolist() == [[1.0, 4.0], [1.0, 4.0], [0.0, 0.0]]
    # ((0 + 4) + (1 + 16)) / 4
    assert out.commitment_loss.item() == out.codebook_loss.item() == 5.25
    (out.quantized.sum() + 2 * out.commitment_loss + 4 * out.codebook_loss).backward()
    # 1 + 2 * (2 / 4) * (x - c) where there is a code, and nothing where there is none
    assert x.grad.tolist() == [[1.0, -1.0], [0.0, -3.0], [0.0, 0.0]]
    # -4 * (2 / 4) * sum(x - c)
    assert codebook.grad.tolist() == [[0.0, 0.0], [2.0, 12.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_forward(backend, shape, dtype):
    x, codebook = testing.gaussian(*shape, dtype=dtype)
    indices = torch.randint(-1, shape[1], (shape[0],))
    quantized, commitment, loss = quantize(x, codebook, indices)
    expected = torch.where((indices >= 0).unsqueeze(-1), codebook[indices], 0)
    assert torch.equal(quantized, expected)
    assert quantized.dtype == dtype
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    assert commitment.dtype == loss.dtype == wide
    budget = 1e-6 if wide == torch.float32 else 1e-14
    assert loss.item() == pytest.approx(expected_loss(x, codebook, indices).item(), rel=budget)
    assert torch.equal(commitment, loss)


@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_gradients_with_random_cotangents(backend, dtype, codebook_dtype):
    x, codebook, indices = leaves(dtype=dtype)
    codebook = codebook.detach().to(codebook_dtype).requires_grad_()
    indices[5:9] = -1
    out = quantize(x, codebook, indices)
    cotangents = torch.randn_like(out.quantized), torch.tensor(0.7), torch.tensor(-1.3)
    cotangents = tuple(c.to(o.dtype) for c, o in zip(cotangents, out, strict=True))
    grad_x, grad_codebook = torch.autograd.grad(out, (x, codebook), cotangents)
    assert grad_x.dtype == x.dtype
    assert grad_codebook.dtype == codebook.dtype

    valid = (indices >= 0).unsqueeze(-1)
    scale = 2 / (valid.sum() * x.shape[1]).double()
    residual = torch.where(valid, x.double() - codebook.double()[indices], 0).detach()
    terms = torch.where(valid, cotangents[0].double(), 0), 0.7 * scale * residual
    slack = ROUNDING[dtype] * sum(t.abs() for t in terms) + 1e-7 * terms[1].abs()
    testing.assert_within(grad_x, sum(terms), slack)

    target = torch.where(valid.squeeze(1), indices, 0)
    sums = torch.zeros_like(codebook, dtype=torch.float64).index_add_(0, target, residual)
    sizes = torch.zeros_like(sums).index_add_(0, target, residual.abs())
    slack = 1.3 * scale * (ROUNDING[codebook_dtype] * sums.abs() + 1e-6 * sizes)
    testing.assert_within(grad_codebook, 1.3 * scale * sums, slack)


def test_losses_have_true_derivatives(backend):
    # the straight-through path is no derivative and is checked against its formula above
    x, codebook, indices = leaves(6, 4, 3, torch.float64)
    commitment = lambda x: quantize(x, codebook.detach(), indices).commitment_loss  # noqa: E731
    learning = lambda c: quantize(x.detach(), c, indices).codebook_loss  # noqa: E731
    assert torch.autograd.gradcheck(commitment, (x,))
    assert torch.autograd.gradcheck(learning, (codebook,))


def test_each_loss_reaches_only_its_side(backend):
    x, codebook, indices = leaves()
    out = quantize(x, codebook, indices)
    for loss, silent in ((out.commitment_loss, codebook), (out.codebook_loss, x)):
        (grad,) = torch.autograd.grad(loss, silent, retain_graph=True)
        assert grad.abs().max() == 0


@pytest.mark.usefixtures("poisoned_empty")
def test_channels_first_stays_channels_first(backend):
    x = testing.channels_first(torch.randn(40, 10), 4, 5).requires_grad_()
    codebook = torch.randn(7, 10)
    indices = nearest(x, codebook).indices
    out = quantize(x, codebook, indices)
    assert out.quantized.stride() == x.stride()
    assert torch.equal(out.quantized, codebook[indices])
    out.quantized.backward(torch.ones_like(out.quantized))
    assert torch.equal(x.grad, torch.ones_like(x))


def test_reads_views_and_writes_nothing_else(backend):
    buffer = torch.full((42, 30), 42.0)
    x = buffer[1:41, 10:20]
    x.copy_(torch.randn(40, 10))
    before = buffer.clone()
    codebook = torch.randn(10, 7).t()
    indices = torch.randint(7, (80,))[::2]
    quantized, loss, _ = quantize(x, codebook, indices)
    assert torch.equal(buffer, before)
    assert torch.equal(quantized, codebook[indices])
    assert loss.item() == pytest.approx(expected_loss(x, codebook, indices).item(), rel=1e-6)


def test_heads(backend):
    x = torch.randn(20, 3, 8, requires_grad=True)
    codebook = torch.randn(3, 5, 8, requires_grad=True)
    indices = nearest(x, codebook).indices
    out = quantize(x, codebook, indices)
    for h in range(3):
        assert torch.equal(out.quantized[:, h], codebook[h, indices[:, h]])
    out.codebook_loss.backward()
    gathered = torch.stack([codebook[h, indices[:, h]] for h in range(3)], 1)
    (expected,) = torch.autograd.grad((x.detach() - gathered).square().mean(), codebook)
    testing.assert_within(codebook.grad, expected.double(), 1e-6 * expected.abs().max())


def test_codebook_gradient_far_from_the_origin(backend):
    # n c - sum(x) would lose seven digits here, and the sum of differences loses none
    x, codebook = testing.gaussian(100, 4, 6)
    x, codebook = x + 1e5, (codebook + 1e5).requires_grad_()
    indices = nearest(x, codebook).indices
    quantize(x, codebook, indices).codebook_loss.backward()
    wide = codebook.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad((x.double() - wide[indices]).square().mean(), wide)
    testing.assert_within(codebook.grad, expected, 1e-5 * expected.abs().max())


def test_loss_far_from_the_origin(backend):
    x, codebook = testing.gaussian(60, 20, 16)
    x, codebook = x + 1e4, codebook + 1e4
    indices = nearest(x, codebook).indices
    loss = quantize(x, codebook, indices).codebook_loss
    assert loss.item() == pytest.approx(expected_loss(x, codebook, indices).item(), rel=1e-6)


def test_bad_row_never_reaches_the_codebook(backend):
    x, codebook, indices = leaves()
    with torch.no_grad():
        x[7, 3] = torch.nan
    out = quantize(x, codebook, indices)
    assert out.commitment_loss.isnan()
    (out.commitment_loss + out.codebook_loss).backward()
    assert torch.isfinite(codebook.grad).all()
    assert torch.isfinite(x.grad[torch.arange(40) != 7]).all()


def test_nothing_has_a_code(backend):
    x, codebook, _ = leaves()
    out = quantize(x, codebook, torch.full((40,), -1))
    assert out.quantized.abs().max() == 0
    assert out.commitment_loss == 0
    (out.quantized.sum() + out.commitment_loss + out.codebook_loss).backward()
    assert x.grad.abs().max() == 0
    assert codebook.grad.abs().max() == 0


def test_empty(backend):
    x = torch.randn(2, 0, 4, requires_grad=True)
    codebook = torch.randn(3, 4, requires_grad=True)
    out = quantize(x, codebook, torch.zeros(2, 0, dtype=torch.int64))
    assert out.quantized.shape == (2, 0, 4)
    assert out.commitment_loss == 0
    (out.quantized.sum() + out.codebook_loss).backward()
    assert codebook.grad.abs().max() == 0


def test_same_bits_every_time(backend):
    x, codebook = (tensor.requires_grad_() for tensor in testing.gaussian(1100, 12, 10))
    indices = torch.randint(12, (1100,))

    def run():
        out = quantize(x, codebook, indices)
        return (*out, *torch.autograd.grad(sum(o.sum() for o in out), (x, codebook)))

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


def test_opcheck(backend):
    x = testing.channels_first(torch.randn(24, 8), 3, 4).flatten(1, 2).unsqueeze(2)
    codebook, indices = torch.randn(1, 9, 8), torch.randint(-1, 9, (2, 12, 1))
    opcheck(torch.ops.fastvq.quantize.default, (x, codebook, indices))
    arguments = (torch.randn(2, 12, 1, 8), torch.tensor(0.5), x, codebook, indices)
    opcheck(torch.ops.fastvq.quantize_backward.default, arguments)


def test_compiles_whole(backend):
    def step(x, codebook):
        out = quantize(x, codebook, nearest(x, codebook).indices)
        return out.quantized.square().sum() + out.commitment_loss + out.codebook_loss

    compiled = torch.compile(step, fullgraph=True)
    x, codebook, _ = leaves()
    expected = torch.autograd.grad(step(x, codebook), (x, codebook))
    actual = torch.autograd.grad(compiled(x, codebook), (x, codebook))
    for a, e in zip(actual, expected, strict=True):
        testing.assert_within(a, e.double(), 1e-6 * e.abs().max())


@pytest.mark.parametrize("index", [12, 700, -2])
def test_index_out_of_range(backend, index):
    x, codebook, indices = leaves()
    indices[3] = index
    with pytest.raises(IndexError, match=rf"\[-1, K = 12\), got {index}"):
        quantize(x, codebook, indices)


BAD_INPUT = {
    "shape": ({"indices": torch.zeros(3, dtype=torch.int64)}, ValueError, r"\[40\].*got \[3\]"),
    "dtype": ({"indices": torch.zeros(40)}, TypeError, "int64, got float32"),
    "codebook": ({"codebook": torch.randn(12, 9)}, ValueError, r"D = 10.*got \[12, 9\]"),
    "gradient": ({"gradient": "straightthrough"}, ValueError, "did you mean 'straight_through'"),
}


@pytest.mark.parametrize(("change", "error", "text"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(change, error, text):
    x, codebook, indices = leaves()
    arguments = {"x": x, "codebook": codebook, "indices": indices, **change}
    with pytest.raises(error, match=text):
        quantize(**arguments)
