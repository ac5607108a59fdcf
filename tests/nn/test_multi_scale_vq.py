"""``MultiScaleVQ``: resampling against torch's, the paper's loop written plainly, and the state."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional

import fastvq
from fastvq import EMA, Frozen, Given, Gradient, MultiScaleVQ, testing
from fastvq.nn._resampling import resample
from fastvq.nn._smoothing import nearest_tick

from .processes import run_two
from .scales import batch, make, shaken


@pytest.mark.parametrize(("source", "target"), [(8, 3), (3, 8), (5, 5), (1, 4), (7, 1)])
def test_resampling_is_torchs(source, target):
    x = torch.randn(2, 3, source, source + 1, dtype=torch.float64)
    size = (target, target + 2)
    for mode in ("area", "bicubic"):
        expected = functional.interpolate(x, size=size, mode=mode)
        testing.assert_within(resample(x, size, mode), expected, 1e-12)
    for dims in (1, 3):
        x = torch.randn(2, 3, *[source] * dims, dtype=torch.float64)
        expected = functional.interpolate(x, size=[target] * dims, mode="area")
        testing.assert_within(resample(x, [target] * dims, "area"), expected, 1e-12)


def plain(vq, x):
    """The authors' loop on images, by torch's interpolation: float64 sums, indices and loss."""
    f, codes = x.double(), vq.codebook.detach().double()
    total, losses, indices = torch.zeros_like(f), 0.0, []
    for s, size in enumerate(vq.scales):
        small = functional.interpolate(f - total, size=size, mode="area").movedim(1, -1)
        index = torch.cdist(small.flatten(0, -2), codes).argmin(-1).view(small.shape[:-1])
        up = functional.interpolate(codes[index].movedim(-1, 1), size=x.shape[2:], mode="bicubic")
        conv = vq.convolutions[nearest_tick(s, len(vq.scales), len(vq.convolutions))]
        smooth = functional.conv2d(up, conv.weight.double(), conv.bias.double(), padding=1)
        total = total + 0.5 * up + 0.5 * smooth
        losses = losses + (f - total).square().mean()
        indices.append(index)
    return total.detach(), indices, losses.detach() / len(vq.scales)


@pytest.mark.parametrize("convolutions", [1, 3, 4])
def test_is_the_papers_loop(convolutions):
    vq = make(
        codebook_size=40, start=Given(torch.randn(40, 6) * 0.6), learning=Gradient(0.7),
        commitment_weight=0.3, convolutions=convolutions,
    )  # fmt: skip
    x = batch()
    quantized, indices, loss = shaken(vq)(x)
    total, expected_indices, expected_loss = plain(vq, x)
    assert all(torch.equal(a, b) for a, b in zip(indices, expected_indices, strict=True))
    testing.assert_within(quantized, total, 1e-5)
    testing.assert_within(loss, (0.3 + 0.7) * expected_loss, 1e-5)


def test_which_convolution_a_scale_has():
    for scales, count in itertools.product(range(2, 14), range(1, 8)):
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(edge, 1 - edge, count)
        for s in range(scales):
            expected = np.argmin(np.abs(ticks - s / (scales - 1)))
            assert nearest_tick(s, scales, count) == expected, (scales, count, s)
    assert [nearest_tick(s, 5, 5) for s in range(5)] == [0, 1, 2, 3, 4]
    assert nearest_tick(0, 1, 1) == 0
    assert {nearest_tick(s, 7, 1) for s in range(7)} == {0}


@pytest.mark.parametrize("learning", [Gradient(0.7), EMA(), Frozen()], ids=lambda v: str(v)[:3])
def test_gradients_are_those_of_the_loss(learning):
    vq = make(start=Given(torch.randn(20, 6)), learning=learning, commitment_weight=0.3)
    vq = shaken(vq).double()
    vq.book.vectors.data = vq.book.vectors.data.double()
    x = batch().double().requires_grad_()
    before = vq.book.vectors.detach().clone()[0]
    quantized, indices, loss = vq(x)
    cotangent = torch.randn_like(x)
    ((quantized * cotangent).sum() + loss).backward()
    f, codes = x.detach().requires_grad_(), before.requires_grad_()
    weights = [p.detach().clone().requires_grad_() for p in vq.convolutions.parameters()]
    total, expected = torch.zeros_like(f), 0.0
    w = learning.weight if isinstance(learning, Gradient) else 1.0
    for s, index in enumerate(indices):
        up = functional.interpolate(codes[index].movedim(-1, 1), size=x.shape[2:], mode="bicubic")
        k = nearest_tick(s, 5, 4)
        smooth = functional.conv2d(up, weights[2 * k], weights[2 * k + 1], padding=1)
        total = total + 0.5 * up + 0.5 * smooth
        expected = expected + 0.3 * (f - total.detach()).square().mean() / 5
        expected = expected + w * (f.detach() - total).square().mean() / 5
    grads = torch.autograd.grad(expected, [f, codes, *weights])
    testing.assert_within(loss, expected.detach(), 1e-10)
    testing.assert_within(x.grad, cotangent + grads[0], 1e-10)
    for parameter, grad in zip(vq.convolutions.parameters(), grads[2:], strict=True):
        testing.assert_within(parameter.grad, grad, 1e-10)
    if isinstance(learning, Gradient):
        testing.assert_within(vq.book.vectors.grad[0], grads[1], 1e-10)
    assert vq.book.vectors.requires_grad == isinstance(learning, Gradient)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_any_number_of_dimensions(dims, channel_dim):
    vq = make(dims, channel_dim=channel_dim)
    x = batch(dims).movedim(1, channel_dim)
    for _ in range(3):
        vq(x)
    vq.eval()
    quantized, indices, loss = vq(x)
    assert quantized.shape == x.shape
    assert loss.shape == ()
    assert [tuple(index.shape) for index in indices] == [(3, *size) for size in vq.scales]
    assert all(torch.equal(a, b) for a, b in zip(vq.encode(x), indices, strict=True))
    assert torch.equal(vq.decode(indices), quantized)
    assert torch.equal(vq.decode([index.int() for index in indices]), quantized)
    first = vq.encode(x, levels=2)
    assert all(torch.equal(a, b) for a, b in zip(first, indices, strict=False))
    assert len(first) == 2
    assert vq.decode(first).shape == x.shape
    other = make(dims, channel_dim=1).eval()
    other.load_state_dict(vq.state_dict())
    moved = other(x.movedim(channel_dim, 1))
    assert torch.equal(moved.quantized.movedim(1, channel_dim), quantized)


def test_input_of_another_resolution():
    vq = make()
    x = torch.randn(2, 6, 11, 9)
    quantized, indices, _ = vq(x)
    assert quantized.shape == x.shape
    assert [tuple(index.shape[1:]) for index in indices] == list(vq.scales)
    quantized, indices, _ = vq.eval()(x)
    assert torch.equal(vq.decode(indices, size=(11, 9)), quantized)


def smooth_batch(size=32):
    """Images of a power spectrum like that of photographs' features."""
    field = torch.randn(size, 6, 3, 3)
    return resample(field, (6, 5), "bicubic") + 0.2 * torch.randn(size, 6, 6, 5)


@pytest.mark.parametrize("learning", [EMA(0.9), Gradient()], ids=["ema", "gradient"])
def test_training_learns_and_more_scales_leave_less(learning):
    torch.manual_seed(0)
    vq = make(codebook_size=128, learning=learning)
    optimizer = torch.optim.Adam(vq.parameters(), 3e-3)
    data = smooth_batch()
    vq(data)
    before = vq.eval()(data).loss
    vq.train()
    for _ in range(100):
        optimizer.zero_grad()
        vq(data).loss.backward()
        optimizer.step()
    out = vq.eval()(data)
    assert out.loss < 0.9 * before
    errors = [(vq.decode(out.indices[: s + 1]) - data).square().mean() for s in range(5)]
    assert all(b < a for a, b in itertools.pairwise(errors))
    assert errors[-1] < 0.5 * data.square().mean()
    assert vq.usage().perplexity > 30


def test_codes_follow_the_means_of_what_they_stand_for():
    given = torch.randn(20, 6)
    vq = make(start=Given(given), learning=EMA(decay=0.0), revival=None, convolutions=0)
    x = batch(size=8)
    indices = vq(x).indices
    total, rows = torch.zeros_like(x), []
    for index, size in zip(indices, vq.scales, strict=True):
        small = functional.interpolate(x - total, size=size, mode="area")
        rows.append(small.movedim(1, -1).reshape(-1, 6))
        up = given[index].movedim(-1, 1)
        total = total + functional.interpolate(up, size=x.shape[2:], mode="bicubic")
    rows, flat = torch.cat(rows), torch.cat([index.flatten() for index in indices])
    for k in range(20):
        chosen = rows[flat == k]
        expected = chosen.mean(0) if len(chosen) else given[k]
        testing.assert_within(vq.codebook[k], expected.double(), 1e-5)


def test_start_sees_what_the_scales_will_see():
    torch.manual_seed(0)
    vq = make(codebook_size=64)
    x = smooth_batch(64) + 50
    out = vq(x)
    assert vq.book.started
    norms = vq.codebook.norm(dim=-1)
    # the mean of the data is for the coarsest scale alone, and the others are about zero
    assert (norms > 50).any()
    assert (norms < 10).sum() > 32
    assert (out.quantized - x).square().mean() < 60


def _train(rank, meet):
    torch.manual_seed(0)
    given = make(start=Given(torch.randn(20, 6)), learning=EMA(0.5), revival=None)
    living = make(learning=EMA(0.5))
    meet()
    torch.manual_seed(100 + rank)
    batches = [batch() for _ in range(4)]
    for step, x in enumerate(batches):
        given(x)
        # an empty batch on one process must not leave the other waiting
        living(x[:0] if step == 2 and rank == 0 else x)
    state = {"given": given.state_dict(), "living": living.state_dict()}
    return {**state, "batches": torch.stack(batches)}


def test_two_processes_share_one_codebook(tmp_path):
    first, second = run_two(_train, tmp_path)
    for kind in ("given", "living"):
        for name, value in first[kind].items():
            assert torch.equal(value, second[kind][name]), (kind, name)
    torch.manual_seed(0)
    alone = make(start=Given(torch.randn(20, 6)), learning=EMA(0.5), revival=None)
    for x, y in zip(first["batches"], second["batches"], strict=True):
        alone(torch.cat([x, y]))
    found = first["given"]["book.vectors"]
    testing.assert_within(found, alone.book.vectors.double(), 1e-5)


@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=["ema", "gradient"])
def test_state_dict_round_trip_and_copies(learning):
    vq, x = make(learning=learning), batch()
    for _ in range(3):
        vq(x)
    other = make(learning=learning)
    other.load_state_dict(copy.deepcopy(vq.state_dict()))
    twin = copy.deepcopy(vq)
    outs = []
    for module in (vq, other, twin):
        torch.manual_seed(1)
        module(x)
        outs.append(module.eval()(x))
    for out in outs[1:]:
        assert torch.equal(out.quantized, outs[0].quantized)
        assert torch.equal(out.loss, outs[0].loss)
    state = {k: torch.cat([v, v]) if v.ndim else v for k, v in vq.state_dict().items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        vq.load_state_dict(state)


def test_eval_changes_nothing():
    vq, x = make(), batch()
    vq(x)
    before = copy.deepcopy(vq.state_dict())
    vq.eval()(x)
    for name, value in vq.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("learning", [EMA(), Gradient()], ids=["ema", "gradient"])
def test_models_of_other_dtypes(dtype, learning):
    vq = make(learning=learning).to(dtype)
    x = batch().to(dtype).requires_grad_()
    quantized, indices, loss = vq(x)
    (quantized.float().sum() + loss).backward()
    assert quantized.dtype == x.grad.dtype == dtype
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    quantized, indices, _ = vq.eval()(x)
    assert torch.equal(vq.decode(indices), quantized)


def test_autocast_changes_nothing():
    vq, x = make().eval(), batch()
    plain_out = vq(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = vq(x)
    assert torch.equal(cast.quantized, plain_out.quantized)
    assert torch.equal(cast.loss, plain_out.loss)


def test_empty_batch():
    vq = make()
    quantized, indices, loss = vq(torch.empty(0, 6, 6, 5))
    assert quantized.shape == (0, 6, 6, 5)
    assert indices[-1].shape == (0, 6, 5)
    assert loss == 0


def test_compiles_whole():
    torch.compiler.reset()
    # a graph grows with its scales, and two show what more would
    eager = MultiScaleVQ(6, 20, [2, (6, 5)], convolutions=2, channel_dim=1)
    trained = copy.deepcopy(eager)
    compiled = torch.compile(trained, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        x = batch().requires_grad_()
        quantized, indices, loss = compiled(x)
        (quantized.sum() + loss).backward()
    assert torch.isfinite(x.grad).all()
    eager.load_state_dict(trained.state_dict())
    eager.eval()
    x = batch()
    out, expected = torch.compile(trained.eval(), fullgraph=True)(x), eager(x)
    torch.testing.assert_close(out.quantized, expected.quantized)
    for a, b in zip(out.indices, expected.indices, strict=True):
        assert torch.equal(a, b)


def test_exports_in_eval():
    vq, x = make(), batch()
    vq(x)
    vq.eval()
    program = torch.export.export(vq, (x,))
    torch.testing.assert_close(program.module()(x).quantized, vq(x).quantized)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"codebook_size": 2.5}, TypeError, "codebook_size must be an int, got float"),
        ({"scales": []}, ValueError, "at least one resolution"),
        ({"scales": [1, (2,)]}, ValueError, "one to three dimensions, all alike"),
        ({"scales": [(1, 1, 1, 1)]}, ValueError, "one to three dimensions"),
        ({"scales": [0, 2]}, ValueError, "each length in scales must be at least 1, got 0"),
        ({"convolutions": -1}, ValueError, "convolutions must be at least 1, got -1"),
        ({"commitment_weight": -1}, ValueError, "commitment_weight must be in"),
        ({"learning": "ema"}, TypeError, "learning must be one of"),
        ({"quant_resi": 0.5}, TypeError, "quant_resi"),
    ],
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        MultiScaleVQ(**{"dim": 8, "codebook_size": 16, "scales": [1, 2, 4], **change})


def test_bad_input_is_named():
    vq = make()
    with pytest.raises(ValueError, match=r"dim = 6 channels.*got \[3, 5, 6, 5\]"):
        vq(torch.randn(3, 5, 6, 5))
    with pytest.raises(ValueError, match=r"x must have 4 dimensions.*got \[3, 6, 5\]"):
        vq(torch.randn(3, 6, 5))
    with pytest.raises(ValueError, match=r"levels must be in \[1, 5\], got 6"):
        vq.encode(batch(), levels=6)
    indices = vq.encode(batch())
    with pytest.raises(ValueError, match="1 to 5 grids, got 0"):
        vq.decode([])
    with pytest.raises(ValueError, match=r"indices\[1\] must be \[B, 2, 2\], got \[3, 1, 1\]"):
        vq.decode([indices[0], indices[0]])
    with pytest.raises(IndexError, match=r"\[-1, K = 20\), got 20"):
        vq.decode([torch.full_like(indices[0], 20)])
    with pytest.raises(TypeError, match=r"indices\[0\] must be integers"):
        vq.decode([indices[0].float()])
    assert "scales=" in repr(vq)
    assert "MultiScaleVQ" in fastvq.__all__
