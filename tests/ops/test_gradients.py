"""The estimators of ``quantize``: the gradients of their definitions, written plainly."""

import math

import pytest
import torch
from torch.library import opcheck

from fastvq import testing
from fastvq.ops import nearest, quantize

DIRECTIONAL = ("rotation", "diveq")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# many codes are for the search alone
SHAPES = tuple((n, min(k, 40), d) for n, k, d in testing.SHAPES)
# a rounding of the result, and of float32 where that is the type of the sum
ROUNDING = {
    torch.float32: 2.0**-24,
    torch.float16: 2.0**-11 + 2.0**-24,
    torch.bfloat16: 2.0**-8 + 2.0**-24,
    torch.float64: 64 * 2.0**-53,
}


def unit(v):
    return v / v.norm(dim=-1, keepdim=True)


def rotated(x, c):
    """|c| / |x| R x with the matrix R of 2410.06424, section 4.2, held constant; it equals c."""
    x_hat, c_hat = unit(x.detach()), unit(c.detach())
    w = unit(x_hat + c_hat)
    outer = torch.einsum("ni,nj->nij", w, w), torch.einsum("ni,nj->nij", c_hat, x_hat)
    matrix = torch.eye(x.shape[-1], dtype=x.dtype) - 2 * outer[0] + 2 * outer[1]
    scale = (c.detach().norm(dim=-1) / x.detach().norm(dim=-1)).unsqueeze(-1)
    return scale * torch.einsum("nij,nj->ni", matrix, x)


def reparametrized(x, c):
    """The sum x + |c - x| u with the direction u of 2509.26469 held constant, without its noise."""
    return x + (c - x).norm(dim=-1, keepdim=True) * unit((c - x).detach())


DEFINITION = {"rotation": rotated, "diveq": reparametrized}


def expected_gradients(gradient, x, codebook, indices, cotangents):
    """Float64 gradients of x and the codebook by autograd through the definition."""
    x, codebook = (t.detach().double().requires_grad_() for t in (x, codebook))
    valid = indices >= 0
    if not valid.any():
        return torch.zeros_like(x), torch.zeros_like(codebook)
    rows, codes = x[valid], codebook[indices[valid]]
    quantized = DEFINITION[gradient](rows, codes)
    testing.assert_within(quantized.detach(), codes.detach(), 1e-9 * (1 + codes.abs().max()))
    outputs = (
        quantized,
        (rows - codes.detach()).square().mean(),
        (rows.detach() - codes).square().mean(),
    )
    weights = cotangents[0][valid].double(), cotangents[1].double(), cotangents[2].double()
    return torch.autograd.grad(outputs, (x, codebook), weights)


def leaves(n=40, k=12, d=10, dtype=torch.float32):
    x, codebook = testing.gaussian(n, k, d, dtype=dtype)
    indices = nearest(x, codebook).indices
    return x.requires_grad_(), codebook.requires_grad_(), indices


def cotangents_of(out):
    values = torch.randn_like(out.quantized), torch.tensor(0.7), torch.tensor(-1.3)
    return tuple(v.to(o.dtype) for v, o in zip(values, out, strict=True))


@pytest.mark.parametrize("codebook_dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gradient", DIRECTIONAL)
@pytest.mark.usefixtures("poisoned_empty")
def test_gradients_are_those_of_the_definition(backend, gradient, dtype, codebook_dtype):
    x, codebook, indices = leaves(dtype=dtype)
    codebook = codebook.detach().to(codebook_dtype).requires_grad_()
    indices[5:9] = -1
    out = quantize(x, codebook, indices, gradient=gradient)
    cotangents = cotangents_of(out)
    grads = torch.autograd.grad(out, (x, codebook), cotangents)
    expected = expected_gradients(gradient, x, codebook, indices, cotangents)
    # a row of x is a sum in float64, rounded once, of which the factor of the loss is a float32
    # product before; a code sums some rounded rows
    for leaf, grad, wanted in zip((x, codebook), grads, expected, strict=True):
        assert grad.dtype == leaf.dtype
        slack = 1e-13
        if torch.float64 not in (dtype, codebook_dtype):
            slack = 1e-6 if leaf is codebook else 2.0**-23
        testing.assert_within(
            grad, wanted, ROUNDING[leaf.dtype] * wanted.abs() + slack * wanted.abs().max()
        )


@pytest.mark.parametrize("gradient", DIRECTIONAL)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_every_shape(backend, gradient, shape):
    n, k, d = shape
    x, codebook = testing.gaussian(n, k, d)
    x, codebook = x.requires_grad_(), codebook.requires_grad_()
    indices = torch.randint(-1, k, (n,))
    out = quantize(x, codebook, indices, gradient=gradient)
    plain = quantize(x, codebook, indices)
    assert all(torch.equal(a, b) for a, b in zip(out, plain, strict=True)), "values are the codes'"
    if d == 1 and gradient == "rotation":
        return  # a turn in one dimension, tested below
    cotangents = cotangents_of(out)
    grads = torch.autograd.grad(out, (x, codebook), cotangents)
    expected = expected_gradients(gradient, x, codebook, indices, cotangents)
    for grad, wanted in zip(grads, expected, strict=True):
        scale = wanted.abs().max() if wanted.numel() else 0.0
        testing.assert_within(grad, wanted, 1e-6 * scale)


def test_derivatives_are_true(backend):
    # with the direction constant, diveq's value differs from the code only to second order
    x, codebook, indices = leaves(6, 4, 3, torch.float64)
    direction = unit((codebook[indices] - x).detach())

    def along(x, codebook):
        # of the component along the direction alone, where the definition is a true derivative
        out = quantize(x, codebook, indices, gradient="diveq")
        return (out.quantized * direction).sum() + out.commitment_loss * 0

    grads = torch.autograd.grad(along(x, codebook), (x, codebook))
    assert grads[0].abs().max() < 1e-12
    assert torch.autograd.gradcheck(lambda c: along(x.detach(), c), (codebook,))


def test_rotation_keeps_lengths_and_angles(backend):
    x, codebook, indices = leaves(50, 9, 7, torch.float64)
    out = quantize(x, codebook, indices, gradient="rotation")
    cotangent = torch.randn_like(out.quantized)
    (grad,) = torch.autograd.grad(out.quantized, x, cotangent)
    codes = codebook[indices].detach()
    scale = codes.norm(dim=-1) / x.detach().norm(dim=-1)
    testing.assert_within(grad.norm(dim=-1), scale * cotangent.norm(dim=-1), 1e-12)
    # the angle between the gradient and x is that between the gradient of the code and the code
    before = (unit(cotangent) * unit(codes)).sum(-1)
    testing.assert_within((unit(grad) * unit(x.detach())).sum(-1), before, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_directions_that_do_not_exist(backend, dtype):
    """By hand: x zero, code zero, both opposite, x its code; and without a code."""
    x = torch.tensor([[0, 0], [3, 4], [3, 4], [1, 2], [5, 6]], dtype=dtype).requires_grad_()
    codebook = torch.tensor([[1, 2], [0, 0], [-6, -8]], dtype=dtype, requires_grad=True)
    indices = torch.tensor([0, 1, 2, 0, -1])
    cotangent = torch.tensor([[1, 2], [1, 2], [1, 2], [1, 2], [1, 2]], dtype=dtype)
    out = quantize(x, codebook, indices, gradient="rotation").quantized
    (grad,) = torch.autograd.grad(out, x, cotangent)
    # opposite: twice (I - 2 x x^T / |x|^2) g, where x . g = 11 and |x|^2 = 25
    mirrored = [2 * (1 - 2 * 3 * 11 / 25), 2 * (2 - 2 * 4 * 11 / 25)]
    expected = torch.tensor([[1, 2], [0, 0], mirrored, [1, 2], [0, 0]], dtype=torch.float64)
    testing.assert_within(grad, expected, 1e-6)
    out = quantize(x, codebook, indices, gradient="diveq").quantized
    grad, grad_codes = torch.autograd.grad(out, (x, codebook), cotangent)
    # along (1, 2) all of g goes to the code; along (3, 4) its part of 11 / 25 (3, 4)
    part = [11 / 25 * 3, 11 / 25 * 4]
    rest = [1 - part[0], 2 - part[1]]
    expected = torch.tensor([[0, 0], rest, rest, [1, 2], [0, 0]], dtype=torch.float64)
    testing.assert_within(grad, expected, 1e-6)
    expected = torch.tensor([[1, 2], part, part], dtype=torch.float64)
    testing.assert_within(grad_codes, expected, 1e-6)


def test_rotation_in_one_dimension_is_the_ratio(backend):
    x = torch.tensor([[2.0], [-2.0], [0.5]], requires_grad=True)
    codebook = torch.tensor([[3.0]])
    out = quantize(x, codebook, torch.zeros(3, dtype=torch.int64), gradient="rotation")
    (grad,) = torch.autograd.grad(out.quantized.sum(), x)
    assert grad.flatten().tolist() == [1.5, -1.5, 6.0]


@pytest.mark.parametrize("near", [1e-1, 1e-3, 3e-4])
def test_rotation_near_the_opposite_direction(backend, near):
    x = torch.randn(20, 6)
    codebook = -x * 1.5 + near * torch.randn(20, 6)
    indices = torch.arange(20)
    leaf = x.clone().requires_grad_()
    out = quantize(leaf, codebook, indices, gradient="rotation").quantized
    cotangent = torch.randn_like(x)
    (grad,) = torch.autograd.grad(out, leaf, cotangent)
    wide = x.double().requires_grad_()
    definition = rotated(wide, codebook.double())
    (expected,) = torch.autograd.grad(definition, wide, cotangent.double())
    testing.assert_within(grad, expected, 1e-6 * expected.abs().max())


@pytest.mark.parametrize("gradient", DIRECTIONAL)
@pytest.mark.parametrize("scale", [1e-30, 1e15])
def test_any_scale(backend, gradient, scale):
    x, codebook, indices = leaves()
    cotangent = torch.randn(40, 10)
    grads = []
    for by in (1.0, scale):
        scaled = (x.detach() * by).requires_grad_()
        out = quantize(scaled, codebook.detach() * by, indices, gradient=gradient).quantized
        grads += torch.autograd.grad(out, scaled, cotangent)
    testing.assert_within(grads[1], grads[0].double(), 1e-5 * grads[0].abs().max())


@pytest.mark.parametrize("gradient", DIRECTIONAL)
def test_far_from_the_origin(backend, gradient):
    x, codebook = testing.gaussian(60, 8, 6)
    x, codebook = (x + 1e4).requires_grad_(), (codebook + 1e4).requires_grad_()
    indices = nearest(x, codebook).indices
    out = quantize(x, codebook, indices, gradient=gradient)
    cotangents = cotangents_of(out)
    grads = torch.autograd.grad(out, (x, codebook), cotangents)
    expected = expected_gradients(gradient, x, codebook, indices, cotangents)
    for grad, wanted in zip(grads, expected, strict=True):
        testing.assert_within(grad, wanted, 1e-6 * wanted.abs().max())


@pytest.mark.parametrize("gradient", DIRECTIONAL)
def test_heads_and_channels_first(backend, gradient):
    x = testing.channels_first(torch.randn(40, 10), 4, 5).requires_grad_()
    codebook = torch.randn(7, 10, requires_grad=True)
    indices = nearest(x, codebook).indices
    out = quantize(x, codebook, indices, gradient=gradient)
    cotangents = cotangents_of(out)
    grads = torch.autograd.grad(out, (x, codebook), cotangents)
    flat = [cotangents[0].flatten(0, -2), *cotangents[1:]]
    expected = expected_gradients(gradient, x.flatten(0, -2), codebook, indices.flatten(), flat)
    testing.assert_within(grads[0].flatten(0, -2), expected[0], 1e-6)
    testing.assert_within(grads[1], expected[1], 1e-5)

    x = torch.randn(20, 3, 8, requires_grad=True)
    codebook = torch.randn(3, 5, 8, requires_grad=True)
    indices = nearest(x, codebook).indices
    whole = quantize(x, codebook, indices, gradient=gradient).quantized
    cotangent = torch.randn_like(x)
    grads = torch.autograd.grad(whole, (x, codebook), cotangent)
    for h in range(3):
        part = quantize(x[:, h], codebook[h], indices[:, h], gradient=gradient).quantized
        alone = torch.autograd.grad(part, (x, codebook), cotangent[:, h])
        assert torch.equal(alone[0][:, h], grads[0][:, h])
        testing.assert_within(grads[1][h], alone[1][h].double(), 1e-6)


@pytest.mark.parametrize("gradient", DIRECTIONAL)
@pytest.mark.parametrize("place", ["x", "gradient"])
def test_bad_row_never_reaches_the_rest(backend, gradient, place):
    x, codebook, indices = leaves()
    cotangent = torch.randn(40, 10)
    with torch.no_grad():
        (x if place == "x" else cotangent)[7, 3] = torch.nan
    out = quantize(x, codebook, indices, gradient=gradient)
    grads = torch.autograd.grad(out.quantized, (x, codebook), cotangent)
    assert torch.isfinite(grads[1]).all()
    assert torch.isfinite(grads[0][torch.arange(40) != 7]).all()


@pytest.mark.parametrize("gradient", DIRECTIONAL)
def test_same_bits_every_time(backend, gradient):
    x, codebook = (tensor.requires_grad_() for tensor in testing.gaussian(300, 12, 10))
    indices = torch.randint(12, (300,))
    cotangent = torch.randn(300, 10)

    def run():
        out = quantize(x, codebook, indices, gradient=gradient)
        return torch.autograd.grad(out.quantized, (x, codebook), cotangent)

    first = run()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))


@pytest.mark.parametrize(
    ("gradient", "to_codes"), [("rotation", False), ("diveq", False), ("diveq", True)]
)
def test_opcheck(backend, gradient, to_codes):
    x = testing.channels_first(torch.randn(24, 8), 3, 4).flatten(1, 2).unsqueeze(2)
    codebook, indices = torch.randn(1, 9, 8), torch.randint(-1, 9, (2, 12, 1))
    arguments = (torch.randn(2, 12, 1, 8), torch.tensor(0.5), x, codebook, indices)
    op = torch.ops.fastvq.directional_backward.default
    opcheck(op, (*arguments, gradient, to_codes))


@pytest.mark.parametrize("gradient", DIRECTIONAL)
def test_compiles_whole(backend, gradient):
    def step(x, codebook):
        out = quantize(x, codebook, nearest(x, codebook).indices, gradient=gradient)
        return out.quantized.square().sum() + out.commitment_loss + out.codebook_loss

    compiled = torch.compile(step, fullgraph=True)
    x, codebook, _ = leaves()
    expected = torch.autograd.grad(step(x, codebook), (x, codebook))
    actual = torch.autograd.grad(compiled(x, codebook), (x, codebook))
    for a, e in zip(actual, expected, strict=True):
        testing.assert_within(a, e.double(), 1e-6 * e.abs().max())


def test_rotation_is_the_peers(backend):
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    x, codebook, indices = leaves(60, 12, 10)
    cotangent = torch.randn(60, 10)
    (theirs,) = torch.autograd.grad(peer.rotate_to(x, codebook.detach()[indices]), x, cotangent)
    out = quantize(x, codebook, indices, gradient="rotation")
    (ours,) = torch.autograd.grad(out.quantized, x, cotangent)
    # their products are float32
    testing.assert_within(ours, theirs.double(), 1e-5 * theirs.abs().max())


def test_diveq_is_the_peers_without_noise(backend):
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    x, codebook, indices = leaves(60, 12, 10)
    cotangent = torch.randn(60, 10)
    theirs = torch.autograd.grad(
        peer.directional_reparam(x, codebook[indices], 0.0), (x, codebook), cotangent
    )
    out = quantize(x, codebook, indices, gradient="diveq")
    ours = torch.autograd.grad(out.quantized, (x, codebook), cotangent)
    for a, b in zip(ours, theirs, strict=True):
        testing.assert_within(a, b.double(), 1e-5 * b.abs().max())


def test_rotation_by_hand():
    # from (1, 0) to (0, 2): a quarter turn, doubled; its transpose turns back
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    out = quantize(x, torch.tensor([[0.0, 2.0]]), torch.tensor([0]), gradient="rotation")
    (grad,) = torch.autograd.grad(out.quantized, x, torch.tensor([[1.0, 10.0]]))
    assert [round(v, 5) for v in grad.flatten().tolist()] == [20.0, -2.0]
    assert math.isclose(out.commitment_loss.item(), 2.5)
