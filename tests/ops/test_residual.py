"""Residual quantization: the answers of the loop over its levels, and its gradients."""

import pytest
import torch
from torch.autograd import gradcheck

import fastvq
from fastvq import ops, testing

# x, levels, codes of both levels, quantized, losses; codebooks [[0], [8]] and [[-1], [1]]
TABLE = (
    (6.5, 2, (1, 0), 7.0, (2.25, 0.25)),
    (1.25, 2, (0, 1), 1.0, (1.5625, 0.0625)),
    (4.0, 2, (0, 1), 1.0, (16.0, 9.0)),  # half-way: the lowest code
    (9.0, 1, (1, -1), 8.0, (1.0, 0.0)),
    (3.0, 0, (-1, -1), 0.0, (0.0, 0.0)),
)


def levels_of(depth: int, k: int, d: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Codebooks ``[Q, K, D]``, finer from level to level."""
    codebooks = torch.randn(depth, k, d, generator=torch.Generator().manual_seed(7))
    return (codebooks * 0.7 ** torch.arange(depth).view(-1, 1, 1)).to(dtype)


def loop(x, codebooks, levels=None):
    """The definition, from the ops of one level."""
    rest, quantized = x.float(), torch.zeros_like(x, dtype=torch.float32)
    indices, losses = [], []
    for q, codebook in enumerate(codebooks):
        index = ops.nearest(rest, codebook).indices
        if levels is not None:
            index = torch.where(levels > q, index, -1)
        out = ops.quantize(rest, codebook, index)
        rest, quantized = rest - out.quantized.detach(), quantized + out.quantized.detach()
        indices.append(index)
        losses.append(out.commitment_loss)
    return quantized, torch.stack(indices, -1), torch.stack(losses)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row[0]:g}-{row[1]}")
def test_hand_computed(backend, row):
    x, taken, codes, quantized, losses = row
    codebooks = torch.tensor([[[0.0], [8.0]], [[-1.0], [1.0]]])
    out = ops.residual(torch.tensor([[x]]), codebooks, levels=torch.tensor([taken]))
    assert tuple(out.indices[0].tolist()) == codes
    assert out.quantized.item() == quantized
    assert tuple(out.commitment_losses.tolist()) == losses
    assert torch.equal(out.codebook_losses, out.commitment_losses)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("shape", [(1, 3, 1, 1), (130, 20, 17, 2), (20, 10, 70, 3)], ids=str)
def test_the_loop_bit_for_bit(backend, shape, dropout):
    n, k, d, depth = shape
    x, codebooks = testing.gaussian(n, k, d)[0], levels_of(depth, k, d)
    levels = torch.randint(depth + 1, (n,)) if dropout else None
    out = ops.residual(x, codebooks, levels=levels)
    quantized, indices, losses = loop(x, codebooks, levels)
    assert torch.equal(out.indices, indices)
    assert torch.equal(out.quantized, quantized)
    testing.assert_within(out.commitment_losses, losses.double(), 1e-6 * losses.double())


def test_backends_agree():
    x, codebooks = testing.gaussian(130, 20, 12)[0], levels_of(2, 20, 12)
    results = {}
    for name in ("reference", "native", "triton"):
        with fastvq.use_backend(name):
            a, c = x.clone().requires_grad_(), codebooks.clone().requires_grad_()
            out = ops.residual(a, c)
            weights = torch.arange(1.0, 3.0)
            loss = (out.commitment_losses * weights).sum() + (out.codebook_losses / weights).sum()
            (out.quantized.sin().sum() + loss).backward()
            results[name] = (*out, a.grad, c.grad)
    for name in ("native", "triton"):
        for actual, expected in zip(results[name], results["reference"], strict=True):
            if expected.dtype == torch.int64:
                assert torch.equal(actual, expected), name
            else:
                budget = 1e-6 * expected.double().abs() + 1e-7
                testing.assert_within(actual.detach(), expected.detach().double(), budget)


def test_gradients_are_those_of_the_loop(backend):
    x, codebooks = testing.gaussian(40, 15, 12)[0], levels_of(3, 15, 12)
    levels = torch.arange(40) % 4
    a, c = x.clone().requires_grad_(), codebooks.clone().requires_grad_()
    out = ops.residual(a, c, levels=levels)
    (3 * out.commitment_losses.sum() + 2 * out.codebook_losses.sum()).backward()
    assert a.grad is not None
    assert c.grad is not None

    b, e = x.clone().requires_grad_(), codebooks.clone().requires_grad_()
    rest, total = b, 0.0
    for q in range(3):
        used = (levels > q).unsqueeze(-1)
        code = torch.where(used, e[q][out.indices[:, q].clamp_min(0)], 0)
        elements = used.sum() * 12
        pull = torch.where(used, rest - code.detach(), 0).square().sum() / elements
        push = torch.where(used, rest.detach() - code, 0).square().sum() / elements
        total = total + 3 * pull + 2 * push
        rest = rest - code.detach()
    total.backward()
    testing.assert_within(a.grad, b.grad.double(), 1e-6)
    testing.assert_within(c.grad, e.grad.double(), 1e-6)


def test_gradient_passes_straight_through(backend):
    x = testing.gaussian(20, 1, 8)[0].requires_grad_()
    out = ops.residual(x, levels_of(3, 10, 8), levels=torch.arange(20) % 4)
    cotangent = torch.randn(20, 8)
    out.quantized.backward(cotangent)
    assert torch.equal(x.grad, cotangent)


def test_gradcheck(backend):
    x = testing.gaussian(4, 1, 3, dtype=torch.float64)[0].requires_grad_()
    codebooks = levels_of(2, 4, 3, torch.float64).requires_grad_()

    def both(a, c):
        # with respect to one while the other counts as a constant, as the losses are defined
        out = ops.residual(a, c.detach())
        return out.commitment_losses

    assert gradcheck(lambda a: both(a, codebooks), x)
    last = ops.residual(x.detach(), codebooks).codebook_losses[1]
    (grad,) = torch.autograd.grad(last, codebooks)
    assert not grad[0].any(), "a level pulls its own codes only"
    assert grad[1].any()


def test_one_codebook_for_all_levels(backend):
    x, shared = testing.gaussian(30, 1, 8)[0], levels_of(1, 10, 8)[0].requires_grad_()
    ops.residual(x, shared.expand(3, -1, -1)).codebook_losses.sum().backward()
    apart = shared.detach().repeat(3, 1, 1).requires_grad_()
    ops.residual(x, apart).codebook_losses.sum().backward()
    testing.assert_within(shared.grad, apart.grad.double().sum(0), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(backend, dtype):
    x, codebooks = testing.gaussian(20, 1, 8, dtype=dtype)[0], levels_of(3, 10, 8)
    out = ops.residual(x, codebooks)
    wide = ops.residual(x.double() if dtype == torch.float64 else x.float(), codebooks)
    assert out.quantized.dtype == dtype
    assert torch.equal(out.indices, wide.indices), "residuals must not be rounded to the dtype of x"
    assert torch.equal(out.quantized, wide.quantized.to(dtype))


def test_channels_first_is_channels_last_moved(backend):
    x, codebooks = testing.gaussian(2 * 12, 1, 8)[0], levels_of(3, 20, 8)
    moved = testing.channels_first(x, 3, 4).requires_grad_()
    out, flat = ops.residual(moved, codebooks), ops.residual(x, codebooks)
    assert out.quantized.stride() == moved.stride()
    assert torch.equal(out.quantized.flatten(0, 2), flat.quantized)
    assert torch.equal(out.indices.flatten(0, 2), flat.indices)
    (out.quantized.sum() + out.commitment_losses.sum()).backward()
    assert torch.isfinite(moved.grad).all()


def test_a_bad_row_spoils_itself(backend):
    x, codebooks = testing.gaussian(40, 1, 8)[0], levels_of(3, 20, 8).requires_grad_()
    clean = ops.residual(x, codebooks)
    x[5, 2] = torch.nan
    out = ops.residual(x, codebooks)
    rest = torch.arange(40) != 5
    assert torch.equal(out.indices[rest], clean.indices[rest])
    assert torch.equal(out.quantized[rest], clean.quantized[rest])
    assert out.indices[5].tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (8,)], ids=str)
def test_shapes_at_the_edge(backend, shape):
    out = ops.residual(torch.randn(shape), levels_of(3, 20, 8))
    assert out.quantized.shape == shape
    assert out.indices.shape == (*shape[:-1], 3)
    assert torch.isfinite(out.commitment_losses).all()


def test_writes_everything_it_returns(backend, poisoned_empty):
    x, codebooks = testing.gaussian(33, 1, 5)[0].requires_grad_(), levels_of(2, 9, 5)
    out = ops.residual(x, codebooks, levels=torch.arange(33) % 3)
    assert torch.isfinite(out.quantized).all()
    assert int(out.indices.min()) >= -1
    (out.quantized.sum() + out.commitment_losses.sum()).backward()
    assert torch.isfinite(x.grad).all()


def test_opcheck(backend):
    x, codebooks = testing.gaussian(10, 1, 4)[0], levels_of(2, 6, 4)
    rows = x.unsqueeze(0)
    checks = ("test_schema", "test_faketensor")
    op = torch.ops.fastvq.residual.default
    torch.library.opcheck(op, (rows, codebooks, None), test_utils=checks)
    _, indices, _, scales = op(rows, codebooks, torch.arange(10).view(1, 10) % 3)
    backward = torch.ops.fastvq.residual_backward.default
    torch.library.opcheck(backward, (rows, scales, rows, codebooks, indices), test_utils=checks)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiles_whole():
    torch.compiler.reset()
    x, codebooks = testing.gaussian(30, 1, 8)[0], levels_of(3, 20, 8)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()

    def step(v):
        out = ops.residual(v, codebooks)
        return out.quantized.sum() + out.commitment_losses.sum()

    torch.compile(step, fullgraph=True)(a).backward()
    step(b).backward()
    testing.assert_within(a.grad, b.grad.double(), 1e-6)


def test_errors_say_what_was_expected_and_what_came():
    x, codebooks = torch.randn(4, 8), torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"codebooks must be \[Q, K, D\].*got \[5, 8\] and"):
        ops.residual(x, codebooks[0])
    with pytest.raises(ValueError, match=r"D = 8.*got \[5, 7\]"):
        ops.residual(x, codebooks[..., :7])
    with pytest.raises(TypeError, match="got int64"):
        ops.residual(x.long(), codebooks)
    with pytest.raises(ValueError, match=r"\[4\].*got \[3\]"):
        ops.residual(x, codebooks, levels=torch.tensor([1, 2, 1]))
    with pytest.raises(TypeError, match=r"int64.*got int32"):
        ops.residual(x, codebooks, levels=torch.ones(4, dtype=torch.int32))
