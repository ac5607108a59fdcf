"""The softmax over the codes: a dense float64 softmax's values and gradients, streamed."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

import fastvq
from fastvq import ops, testing

from .dense import METRICS, close, dense, dense_entropies, leaves


def test_by_hand(backend):
    # logits 0 and -4 log 2 / 4: probabilities 2 / 3 and 1 / 3, mirrored for the second row
    side = math.sqrt(math.log(2))
    x = torch.tensor([[0.0], [side]])
    codebook = torch.tensor([[0.0], [side]])
    out = ops.entropy(x, codebook)
    expected = math.log(3) - 2 / 3 * math.log(2)
    assert out.sample.item() == pytest.approx(expected, rel=1e-6)
    assert out.batch.item() == pytest.approx(math.log(2), rel=1e-6)
    assert out.probabilities.tolist() == pytest.approx([0.5, 0.5], rel=1e-6)
    assert out.counted.item() == 2
    loss = ops.code_cross_entropy(x, codebook, torch.tensor([0, 0]))
    assert loss.tolist() == pytest.approx([math.log(1.5), math.log(3)], rel=1e-6)
    mean = ops.soft_assignment(x, codebook)
    assert mean.flatten().tolist() == pytest.approx([side / 3, 2 * side / 3], rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 1, 3), (33, 70, 2), (20, 130, 17)], ids=str)
def test_entropies(backend, budgeted, shape, metric):
    dtype, relative = budgeted
    x, codebook = testing.gaussian(*shape, dtype=dtype)
    a, c = leaves(x, codebook)
    b, e = leaves(x.double(), codebook.double())
    out = ops.entropy(a, c, metric=metric, inverse_temperature=0.7)
    sample, batch, mean = dense_entropies(dense(b, e, metric, 0.7))
    assert out.sample.dtype == dtype
    assert abs(out.sample.item() - sample.item()) <= relative * math.log(shape[1] + 1)
    assert abs(out.batch.item() - batch.item()) <= relative * math.log(shape[1] + 1)
    close(out.probabilities, mean, relative)
    cotangent = torch.randn_like(out.probabilities)
    (2 * out.sample - 3 * out.batch + (out.probabilities * cotangent).sum()).backward()
    (2 * sample - 3 * batch + (mean * cotangent).sum()).backward()
    scale = 1 / shape[0]  # of a gradient that cancels to nothing
    for actual, expected in ((a.grad, b.grad), (c.grad, e.grad)):
        testing.assert_within(actual, expected, relative * (expected.abs().max() + scale))


@pytest.mark.parametrize("metric", METRICS)
def test_code_cross_entropy(backend, budgeted, metric):
    dtype, relative = budgeted
    x, codebook = testing.gaussian(33, 70, 17, dtype=dtype)
    indices = torch.randint(-1, 70, (33,))
    indices[3] = -1
    a, c = leaves(x, codebook)
    b, e = leaves(x.double(), codebook.double())
    loss = ops.code_cross_entropy(a, c, indices, metric=metric, inverse_temperature=0.7)
    chosen = dense(b, e, metric, 0.7).gather(-1, indices.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    expected = torch.where(indices >= 0, -chosen, 0)
    close(loss, expected, relative)
    assert loss[3].item() == 0
    cotangent = torch.randn_like(loss)
    loss.backward(cotangent)
    expected.backward(cotangent.double())
    close(a.grad, b.grad, relative)
    close(c.grad, e.grad, relative)
    assert not a.grad[3].any()


def test_gradcheck(backend):
    x, codebook = leaves(*testing.gaussian(3, 4, 2, dtype=torch.float64))

    def everything(x, c):
        out = ops.entropy(x, c, inverse_temperature=0.5)
        loss = ops.code_cross_entropy(x, c, torch.tensor([2, -1, 0]), inverse_temperature=0.5)
        mean = ops.soft_assignment(x, c, metric="cosine", inverse_temperature=2.0)
        return out.sample, out.probabilities, loss, mean

    assert gradcheck(everything, (x, codebook), fast_mode=True)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_far_from_the_origin(backend, metric):
    # on the grid that float32 has at the offset
    x, codebook = ((t / 10 * 1024).round() / 1024 + 1e4 for t in testing.gaussian(60, 50, 16))
    if metric == "cosine":
        x, codebook = x - 1e4, codebook - 1e4
    a, c = leaves(x, codebook)
    b, e = leaves(x.double(), codebook.double())
    out = ops.entropy(a, c, metric=metric, inverse_temperature=100.0)
    sample, batch, mean = dense_entropies(dense(b, e, metric, 100.0))
    assert 0.1 < sample.item() < batch.item() < 3.9
    assert out.sample.item() == pytest.approx(sample.item(), abs=2e-5)
    close(out.probabilities, mean, 2e-5)
    (out.sample - out.batch).backward()
    (sample - batch).backward()
    close(a.grad, b.grad, 1e-4)
    close(c.grad, e.grad, 1e-4)
    mean_code = ops.soft_assignment(x, codebook, metric=metric, inverse_temperature=100.0)
    expected = dense(x, codebook, metric, 100.0).exp() @ codebook.double()
    # the result itself is rounded at the offset
    testing.assert_within(mean_code, expected, 1e-6 * expected.abs() + 1e-5)


def test_heads_are_apart(backend):
    x, codebook = torch.randn(4, 5, 3, 6), torch.randn(3, 9, 6)
    together = ops.entropy(x, codebook)
    indices = torch.randint(9, (4, 5, 3))
    for h in range(3):
        alone = ops.entropy(x[..., h, :], codebook[h])
        for a, b in zip(together, alone, strict=True):
            testing.assert_within(a[h], b.double(), 1e-6 * b.double().abs() + 1e-6)
        one = ops.soft_assignment(x[..., h, :], codebook[h])
        assert torch.equal(ops.soft_assignment(x, codebook)[..., h, :], one)
        one = ops.code_cross_entropy(x[..., h, :], codebook[h], indices[..., h])
        assert torch.equal(ops.code_cross_entropy(x, codebook, indices)[..., h], one)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_inputs_are_computed_wide(backend, dtype):
    x, codebook = testing.gaussian(20, 30, 8, dtype=dtype)
    a, c = leaves(x, codebook)
    out, wide = ops.entropy(a, c), ops.entropy(x.float(), codebook.float())
    assert out.sample.dtype == torch.float32
    assert torch.equal(out.sample, wide.sample)
    out.sample.backward()
    assert a.grad.dtype == c.grad.dtype == dtype


def test_rows_that_do_not_count(backend):
    x, codebook = testing.gaussian(30, 20, 8)
    counted = torch.arange(30) % 3 > 0
    a, c = leaves(x, codebook)
    b, e = leaves(x, codebook)
    out, alone = ops.entropy(a, c, counted=counted), ops.entropy(b[counted], e)
    for actual, expected in zip(out, alone, strict=True):
        testing.assert_within(actual.detach(), expected.detach().double(), 2e-6)
    (out.sample - out.batch).backward()
    (alone.sample - alone.batch).backward()
    testing.assert_within(a.grad, b.grad.double(), 2e-6)
    testing.assert_within(c.grad, e.grad.double(), 2e-6)
    none = ops.entropy(x, codebook, counted=torch.zeros(30, dtype=torch.bool))
    assert [value.sum().item() for value in none] == [0, 0, 0, 0]


@pytest.mark.parametrize("fault", [math.nan, math.inf, 1e30])
def test_a_bad_row_spoils_itself(backend, fault):
    x, codebook = testing.gaussian(30, 20, 8)
    rest = torch.arange(30) != 5
    bad = x.clone()
    bad[5, 2] = fault
    a, c = leaves(bad, codebook)
    out, clean = ops.entropy(a, c), ops.entropy(x[rest], codebook)
    for actual, expected in zip(out, clean, strict=True):
        testing.assert_within(actual.detach(), expected.double(), 2e-6)
    mean = ops.soft_assignment(a, c)
    loss = ops.code_cross_entropy(a, c, torch.zeros(30, dtype=torch.int64))
    assert torch.isfinite(mean[rest]).all()
    assert torch.isfinite(loss[rest]).all()
    assert mean[5].isnan().all()
    assert loss[5].isnan()
    (out.sample - out.batch + mean[rest].sum() + loss[rest].sum()).backward()
    assert torch.isfinite(a.grad[rest]).all()
    assert torch.isfinite(c.grad).all()
    drawn = ops.sample_codes(bad, codebook, seed=1)
    assert torch.equal(drawn[rest], ops.sample_codes(x, codebook, seed=1)[rest])


@pytest.mark.parametrize("fault", [math.nan, math.inf, 1e30])
def test_a_bad_code_is_never_taken(backend, fault):
    x, codebook = testing.gaussian(30, 20, 8)
    bad = codebook.clone()
    bad[3, 1] = fault
    rest = torch.arange(20) != 3
    a, c = leaves(x, bad)
    b, e = leaves(x, codebook[rest])
    out, clean = ops.entropy(a, c), ops.entropy(b, e)
    assert out.probabilities[3].item() == 0
    testing.assert_within(out.probabilities[rest].detach(), clean.probabilities.double(), 1e-6)
    (out.sample - out.batch + ops.soft_assignment(a, c).sum()).backward()
    (clean.sample - clean.batch + ops.soft_assignment(b, e).sum()).backward()
    testing.assert_within(a.grad, b.grad.double(), 2e-5)
    testing.assert_within(c.grad[rest], e.grad.double(), 2e-5)
    assert torch.isfinite(c.grad).all()
    assert not (ops.sample_codes(x, bad, seed=0) == 3).any()


def test_no_good_code(backend):
    x, codebook = testing.gaussian(4, 3, 2)
    out = ops.entropy(x, codebook * math.nan)
    assert [value.sum().item() for value in out] == [0, 0, 0, 0]
    assert ops.soft_assignment(x, codebook * math.nan).isnan().all()
    assert ops.sample_codes(x, codebook * math.nan, seed=0).tolist() == [0] * 4


@pytest.mark.parametrize("shape", [(0, 8), (3, 0, 8), (8,)], ids=str)
def test_shapes_at_the_edge(backend, shape):
    x, codebook = torch.randn(shape).requires_grad_(), torch.randn(5, 8).requires_grad_()
    out = ops.entropy(x, codebook)
    assert out.probabilities.shape == (5,)
    mean = ops.soft_assignment(x, codebook)
    assert mean.shape == shape
    loss = ops.code_cross_entropy(x, codebook, torch.zeros(shape[:-1], dtype=torch.int64))
    assert loss.shape == ops.sample_codes(x, codebook, seed=0).shape == shape[:-1]
    (out.sample + out.batch + mean.sum() + loss.sum()).backward()
    assert torch.isfinite(codebook.grad).all()


def test_channels_first(backend):
    x, codebook = testing.gaussian(2 * 12, 10, 8)
    moved = testing.channels_first(x, 3, 4)
    assert torch.equal(
        ops.soft_assignment(moved, codebook).flatten(0, 2), ops.soft_assignment(x, codebook)
    )


def test_writes_everything_it_returns(backend, poisoned_empty):
    x, codebook = leaves(*testing.gaussian(33, 70, 5))
    out = ops.entropy(x, codebook)
    mean = ops.soft_assignment(x, codebook)
    loss = ops.code_cross_entropy(x, codebook, torch.arange(33))
    (out.sample - out.batch + mean.sum() + loss.sum()).backward()
    for tensor in (*out, mean, loss, x.grad, codebook.grad):
        assert torch.isfinite(tensor).all()


def test_cross_entropy_is_never_negative(backend):
    x, _ = testing.gaussian(64, 1, 16)
    loss = ops.code_cross_entropy(x, 30 * x + 1, torch.arange(64), inverse_temperature=50.0)
    assert (loss >= 0).all()


def test_bits_do_not_depend_on_threads():
    x, codebook = testing.gaussian(300, 700, 9)

    def run():
        a, c = leaves(x, codebook)
        out = ops.entropy(a, c)
        (out.sample - out.batch + ops.soft_assignment(a, c).sum()).backward()
        return out.sample.detach(), out.probabilities.detach(), a.grad, c.grad

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = run()
        torch.set_num_threads(3)
        three = run()
    finally:
        torch.set_num_threads(threads)
    # the sums of torch over rows are its own; the streams are compared through the rest
    for a, b in zip(one[1:], three[1:], strict=True):
        assert torch.equal(a, b)


def test_memory_does_not_grow_with_rows_times_codes():
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, list | tuple) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.numel())
            return out

    x, codebook = leaves(*testing.gaussian(3000, 2000, 4))
    with fastvq.use_backend("reference"), Largest() as largest:
        out = ops.entropy(x, codebook)
        (out.sample - out.batch).backward()
    assert largest.numel <= 4 * max(x.numel(), codebook.numel())


def test_the_batch_entropy_of_several_processes():
    x, codebook = testing.gaussian(32, 20, 8)
    (whole,) = leaves(codebook)
    joint = ops.entropy(x, whole)
    joint.batch.backward()
    means = [ops.entropy(part, codebook).probabilities for part in x.chunk(2)]
    mean = torch.stack(means).mean(0)
    testing.assert_within(mean, joint.probabilities.detach().double(), 1e-7)
    grads = []
    for part in x.chunk(2):
        (alone,) = leaves(codebook)
        own = ops.entropy(part, alone).probabilities
        ops.distribution_entropy(own + (mean - own.detach())).backward()
        grads.append(alone.grad)
    # as gradients are averaged over processes
    close(torch.stack(grads).mean(0), whole.grad.double(), 1e-5)


def test_distribution_entropy():
    p = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], requires_grad=True)
    h = ops.distribution_entropy(p)
    assert h.tolist() == pytest.approx([math.log(2), 0.0])
    h.sum().backward()
    assert torch.isfinite(p.grad).all()


@pytest.mark.parametrize("by_code", [False, True])
def test_opcheck(backend, by_code):
    x, codebook = torch.randn(2, 5, 3), torch.randn(2, 7, 3)
    bias, keys = torch.zeros(2, 7), torch.arange(20).view(2, 2, 5)
    checks = ("test_schema", "test_faketensor")
    rows = torch.ops.fastvq.softmax_rows.default
    torch.library.opcheck(rows, (x, codebook, bias, None, "dot", 2.0), test_utils=checks)
    given = (x, codebook, bias, torch.zeros(2, 5), torch.ones(2, 5), torch.randn(3, 2, 5))
    values = x if by_code else codebook
    for rest in ((None,) * 4, (torch.randn(2, 7), x, codebook, values)):
        torch.library.opcheck(
            torch.ops.fastvq.softmax_sums.default,
            (*given, *rest, by_code, "euclidean", 2.0),
            test_utils=checks,
        )
    samples = torch.ops.fastvq.softmax_samples.default
    torch.library.opcheck(samples, (x, codebook, bias, keys, "dot", 2.0), test_utils=checks)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_compiles_whole():
    torch.compiler.reset()
    x, codebook = testing.gaussian(30, 20, 8)
    indices, seed = torch.arange(30) % 20, torch.tensor(4)

    def step(x, c):
        out = ops.entropy(x, c)
        loss = ops.code_cross_entropy(x, c, indices).mean()
        drawn = ops.sample_codes(x, c, seed=seed)
        return out.sample - out.batch + loss + ops.soft_assignment(x, c).mean(), drawn

    (a, c), (b, e) = leaves(x, codebook), leaves(x, codebook)
    # all that is here as C++ would take a minute; the quantizers have it generated for theirs
    loss, drawn = torch.compile(step, fullgraph=True, backend="aot_eager")(a, c)
    loss.backward()
    expected, expected_drawn = step(b, e)
    expected.backward()
    assert torch.equal(drawn, expected_drawn)
    testing.assert_within(a.grad, b.grad.double(), 1e-6)
    testing.assert_within(c.grad, e.grad.double(), 1e-6)


def test_errors_say_what_was_expected_and_what_came():
    x, codebook = torch.randn(4, 8), torch.randn(5, 8)
    with pytest.raises(ValueError, match="did you mean 'cosine'"):
        ops.entropy(x, codebook, metric="cosin")
    with pytest.raises(ValueError, match=r"inverse_temperature must be above 0 .*got 0"):
        ops.soft_assignment(x, codebook, inverse_temperature=0)
    with pytest.raises(TypeError, match="inverse_temperature must be a number, got str"):
        ops.entropy(x, codebook, inverse_temperature="1")
    with pytest.raises(TypeError, match="counted must be bool, got float32"):
        ops.entropy(x, codebook, counted=torch.ones(4))
    with pytest.raises(ValueError, match=r"counted must be \[4\].*got \[3\]"):
        ops.entropy(x, codebook, counted=torch.ones(3, dtype=torch.bool))
    with pytest.raises(IndexError, match=r"\[-1, K = 5\), got 5"):
        ops.code_cross_entropy(x, codebook, torch.tensor([0, 1, 5, -1]))
    with pytest.raises(TypeError, match="seed must be an int or an int64 tensor, got float"):
        ops.sample_codes(x, codebook, seed=0.5)
    with pytest.raises(TypeError, match=r"0-d int64 tensor, got float32 of shape \[1\]"):
        ops.sample_codes(x, codebook, seed=torch.ones(1))
    with pytest.raises(TypeError, match=r"probabilities must be float32.*got int64"):
        ops.distribution_entropy(torch.ones(3, dtype=torch.int64))
