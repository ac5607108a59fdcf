"""``VectorQuantizer``: the shared contract, then its own numbers against the papers' formulas."""

import pytest
import torch
from torch import nn

from fastvq import (
    EMA,
    Frozen,
    Given,
    Gradient,
    KMeans,
    Revival,
    Uniform,
    VectorQuantizer,
    ops,
    testing,
)
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    training_compiler = "inductor"

    def make(self, channel_dim=-1):
        return VectorQuantizer(self.dim, 32, channel_dim=channel_dim)


class TestContractWithEverything(QuantizerContract):
    """Heads, projections, unit norm, accumulation: the other branch of each."""

    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return VectorQuantizer(
            self.dim,
            32,
            codebook_dim=5,
            heads=2,
            metric="cosine",
            learning=EMA(decay=0.9, every=2),
            channel_dim=channel_dim,
        )


class TestContractByGradient(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return VectorQuantizer(
            self.dim, 32, learning=Gradient(), metric="dot", channel_dim=channel_dim
        )


class TestContractFrozen(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return VectorQuantizer(
            self.dim, 32, learning=Frozen(), start=Uniform(2.0), channel_dim=channel_dim
        )


class TestContractByRotation(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return VectorQuantizer(self.dim, 32, gradient="rotation", channel_dim=channel_dim)


class TestContractByDiveq(QuantizerContract):
    compiler = "aot_eager"

    def make(self, channel_dim=-1):
        return VectorQuantizer(
            self.dim, 32, learning=Gradient(), gradient="diveq", channel_dim=channel_dim
        )


@pytest.mark.parametrize("gradient", ["rotation", "diveq"])
def test_gradient_is_the_ops(backend, gradient):
    given = torch.randn(16, 8)
    quantizer = VectorQuantizer(8, 16, start=Given(given), learning=Gradient(), gradient=gradient)
    x = torch.randn(3, 10, 8, requires_grad=True)
    quantized, indices, loss = quantizer(x)
    actual = torch.autograd.grad((quantized.square().sum(), loss), (x, quantizer.book.vectors))
    codes = given.clone().requires_grad_()
    out = ops.quantize(x, codes, indices, gradient=gradient)
    total = out.quantized.square().sum() + 0.25 * out.commitment_loss + out.codebook_loss
    wanted = torch.autograd.grad(total, (x, codes))
    assert torch.equal(actual[0], wanted[0])
    assert torch.equal(actual[1][0], wanted[1])


def test_diveq_alone_trains_codes_and_encoder():
    """As its paper has it: no commitment loss, no codebook loss."""
    start = Given(0.1 * torch.randn(16, 2))
    quantizer = VectorQuantizer(
        2, 16, start=start, learning=Gradient(weight=0.0), gradient="diveq", commitment_weight=0.0
    )
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    data = torch.randn(500, 2)
    errors = []
    for _ in range(100):
        optimizer.zero_grad()
        error = (quantizer(data).quantized - data).square().mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[-1] < 0.2 * errors[0]


def test_straight_through_and_commitment_gradients(backend):
    quantizer = VectorQuantizer(8, 16, start=Uniform(1.0), commitment_weight=0.7)
    x = torch.randn(10, 8, requires_grad=True)
    before = quantizer.codebook.clone()
    quantized, indices, loss = quantizer(x)
    cotangent = torch.randn_like(x)
    ((quantized * cotangent).sum() + 3 * loss).backward()
    expected = cotangent + 3 * 0.7 * 2 / x.numel() * (x - before[indices]).detach()
    testing.assert_within(x.grad, expected.double(), 1e-6)
    assert loss.item() == pytest.approx(0.7 * (x - before[indices]).square().mean().item())


def test_output_uses_the_codes_from_before_the_update(backend):
    quantizer = VectorQuantizer(8, 16, start=Uniform(1.0), learning=EMA(decay=0.5))
    before = quantizer.codebook.clone()
    quantized, indices, _ = quantizer(torch.randn(50, 8))
    assert torch.equal(quantized, before[indices])
    assert not torch.equal(quantizer.codebook, before)


def test_mask(backend):
    quantizer = VectorQuantizer(8, 16, codebook_dim=4, start=Uniform(1.0), revival=None)
    x, mask = torch.randn(3, 7, 8, requires_grad=True), torch.rand(3, 7) > 0.4
    masked = quantizer(x, mask)
    assert (masked.indices[~mask] == -1).all()
    assert (masked.indices[mask] >= 0).all()
    assert masked.quantized[~mask].abs().max() == 0
    (masked.quantized.sum() + masked.loss).backward()
    assert x.grad[~mask].abs().max() == 0
    again = quantizer.eval()(x, torch.ones_like(mask))
    plain = quantizer(x)
    assert torch.equal(again.loss, plain.loss)
    assert torch.equal(again.quantized, plain.quantized)


def test_mask_leaves_the_loss_of_the_rest(backend):
    quantizer = VectorQuantizer(8, 16, start=Uniform(1.0)).eval()
    x, mask = torch.randn(3, 7, 8), torch.rand(3, 7) > 0.4
    kept = quantizer(x[mask])
    assert quantizer(x, mask).loss.item() == pytest.approx(kept.loss.item(), rel=1e-6)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "angular", "dot"])
def test_metric_decides_the_code(backend, metric):
    quantizer = VectorQuantizer(8, 16, metric=metric, start=Given(torch.randn(16, 8))).eval()
    x = torch.randn(50, 8)
    indices = quantizer.encode(x)
    distance = "cosine" if metric == "angular" else metric
    assert not testing.wrong_codes(x, quantizer.codebook.clone(), indices, distance).any()


def test_cosine_lives_on_the_sphere(backend):
    quantizer = VectorQuantizer(8, 16, metric="cosine")
    for _ in range(5):
        quantized, _, _ = quantizer(torch.randn(40, 8) * 7)
    one = torch.ones((), dtype=torch.float64)
    testing.assert_within(quantizer.codebook.norm(dim=-1), one.expand(16), 1e-6)
    testing.assert_within(quantized.norm(dim=-1), one.expand(40), 1e-6)


@pytest.mark.parametrize("learning", [EMA(decay=0.0), Gradient()], ids=["ema", "gradient"])
def test_angular_keeps_lengths(learning):
    codes = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    options = {"start": Given(codes), "learning": learning, "revival": None}
    quantizer = VectorQuantizer(2, 2, metric="angular", **options)
    # by distance the first would take the second code
    x = torch.tensor([[0.2, 0.1], [1.0, 4.0]], requires_grad=True)
    quantized, indices, loss = quantizer(x)
    assert indices.tolist() == [0, 1]
    assert torch.equal(quantized, codes)
    (grad,) = torch.autograd.grad(quantized.sum() + loss, x)
    torch.testing.assert_close(grad, 1 + 0.25 * 2 * (x - codes) / 4)
    weight = 1.25 if isinstance(learning, Gradient) else 0.25
    torch.testing.assert_close(loss, weight * (x - codes).square().mean())
    if isinstance(learning, EMA):
        torch.testing.assert_close(quantizer.codebook, x.detach())
    assert torch.equal(quantizer.decode(indices), quantizer.codebook)


def test_angular_starts_and_revives_with_lengths():
    x = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    quantizer = VectorQuantizer(2, 2, metric="angular", start=KMeans())
    quantizer(x.repeat(10, 1))
    assert torch.equal(quantizer.codebook.sort(0).values, x.sort(0).values)
    dead = torch.tensor([[3.0, 0.0], [0.0, 0.5], [-9.0, -9.0]])
    quantizer = VectorQuantizer(2, 3, metric="angular", start=Given(dead), learning=EMA(decay=0.0))
    quantizer(x)
    assert (quantizer.codebook[2] == x).all(-1).any()


def test_angular_takes_a_vector_without_direction(backend):
    codes = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    quantizer = VectorQuantizer(2, 2, metric="angular", start=Given(codes))
    x = torch.zeros(1, 2, requires_grad=True)
    quantized, indices, loss = quantizer(x)
    # all are as far, and the lowest wins
    assert indices.tolist() == [0]
    assert torch.equal(quantized, codes[:1])
    (grad,) = torch.autograd.grad(quantized.sum() + loss, x)
    torch.testing.assert_close(grad, 1 + 0.25 * (x - codes[:1]))


def test_heads_are_quantizers_side_by_side(backend):
    start = torch.randn(2, 16, 4)
    both = VectorQuantizer(8, 16, heads=2, start=Given(start), revival=None)
    alone = [VectorQuantizer(4, 16, start=Given(s), revival=None) for s in start]
    x = torch.randn(30, 8)
    out = both(x)
    for h, part in enumerate(x.split(4, -1)):
        expected = alone[h](part)
        assert torch.equal(out.indices[:, h], expected.indices)
        assert torch.equal(out.quantized.split(4, -1)[h], expected.quantized)
        testing.assert_within(both.codebook[h], alone[h].codebook.double(), 1e-6)


def test_half_models_keep_their_codes_in_float32():
    model = nn.Sequential(nn.Linear(6, 8), VectorQuantizer(8, 16)).to(torch.bfloat16)
    assert model[1].codebook.dtype == torch.float32
    assert model[0].weight.dtype == torch.bfloat16
    # a decay of 0.99 moves a bfloat16 average by less than it can hold
    before = None
    for _ in range(5):
        model(torch.randn(64, 6, dtype=torch.bfloat16))
        assert before is None or not torch.equal(before, model[1].codebook)
        before = model[1].codebook.clone()


def test_double_models_pass_gradcheck():
    quantizer = VectorQuantizer(4, 6, start=Given(torch.randn(6, 4))).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: quantizer(x).loss, (x,))


def test_decode_of_no_code_is_zero():
    quantizer = VectorQuantizer(8, 16, codebook_dim=4)
    assert quantizer.decode(torch.tensor([[-1, 3]]))[0, 0].abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16])
@pytest.mark.parametrize("codebook_size", [128, 256, 300])
def test_decode_takes_narrow_integers(dtype, codebook_size):
    # bounds beyond the narrow type must not wrap into it
    quantizer = VectorQuantizer(4, codebook_size)
    indices = torch.tensor([0, 100, 127], dtype=dtype)
    assert torch.equal(quantizer.decode(indices), quantizer.codebook[indices.long()])


def test_cosine_by_gradient_stays_on_the_sphere():
    quantizer = VectorQuantizer(8, 16, metric="cosine", learning=Gradient())
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.1)
    for _ in range(10):
        optimizer.zero_grad()
        quantizer(torch.randn(64, 8)).loss.backward()
        optimizer.step()
    quantizer.eval()
    x = torch.randn(200, 8)
    norms = quantizer.codebook.detach().norm(dim=-1)
    testing.assert_within(norms, torch.ones(16, dtype=torch.float64), 1e-6)
    assert not testing.wrong_codes(
        x, quantizer.book.vectors[0].detach(), quantizer.encode(x), "cosine"
    ).any()


def test_padding_never_reaches_a_gradient():
    for options in ({"codebook_dim": 4}, {"metric": "cosine"}):
        quantizer = VectorQuantizer(8, 16, **options)
        quantizer(torch.randn(64, 8))
        x, mask = torch.randn(2, 10, 8), torch.ones(2, 10, dtype=torch.bool)
        mask[1, 5:] = False
        x[~mask] = torch.nan
        x.requires_grad_()
        quantized, _, loss = quantizer(x, mask)
        (quantized.sum() + loss).backward()
        assert torch.isfinite(x.grad).all()
        assert all(torch.isfinite(p.grad).all() for p in quantizer.parameters())


def test_eval_forward_survives_a_training_step_before_backward():
    quantizer = VectorQuantizer(8, 16)
    quantizer(torch.randn(64, 8))
    x = torch.randn(64, 8, requires_grad=True)
    out = quantizer.eval()(x)
    quantizer.train()(torch.randn(64, 8))
    (out.quantized.sum() + out.loss).backward()


def test_compiles_behind_a_convolution_for_any_image_size():
    torch.compiler.reset()
    convolution = nn.Conv2d(1, 8, 3, 2, 1)
    quantizer = VectorQuantizer(8, 16, channel_dim=1, start=Given(torch.randn(16, 8))).eval()
    compiled = torch.compile(lambda x: quantizer(convolution(x)).quantized, fullgraph=True)
    for shape in ((8, 1, 8, 8), (4, 1, 10, 10), (3, 1, 6, 14)):
        x = torch.rand(shape)
        torch.testing.assert_close(compiled(x), quantizer(convolution(x)).quantized)


BAD_ARGUMENTS = {
    "dim": ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
    "codebook_size": ({"codebook_size": 2.5}, TypeError, "codebook_size must be an int, got float"),
    "heads": ({"heads": 3}, ValueError, "multiple of heads = 3, got 8"),
    "metric": ({"metric": "cosin"}, ValueError, "did you mean 'cosine'"),
    "learning": ({"learning": "ema"}, TypeError, r"EMA\(...\), Gradient\(...\), Frozen\(...\)"),
    "class": ({"learning": EMA}, TypeError, "learning must be one of"),
    "start": ({"start": True}, TypeError, r"KMeans\(...\)"),
    "revival": ({"revival": 2}, TypeError, r"Revival\(...\), got 2"),
    "weight": ({"commitment_weight": -1.0}, ValueError, "commitment_weight must be in"),
    "given": ({"start": Given(torch.randn(16, 7))}, ValueError, r"\[16, 8\], got \[16, 7\]"),
    "gradient": ({"gradient": "rotate"}, ValueError, "did you mean 'rotation'"),
    "diveq": ({"gradient": "diveq"}, ValueError, r"learning=Gradient\(...\), got EMA"),
    "unknown": ({"use_cosine_sim": True}, TypeError, "use_cosine_sim"),
}


@pytest.mark.parametrize(
    ("change", "error", "text"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS.keys()
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        VectorQuantizer(**{"dim": 8, "codebook_size": 16, **change})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: EMA(decay=1.0), r"decay must be in \[0, 1\), got 1"),
        (lambda: EMA(every=0), "every must be at least 1"),
        (lambda: Gradient(weight=-1), "weight must be in"),
        (lambda: Revival(threshold=0), "revival=None"),
        (lambda: KMeans(iterations=0), "iterations must be at least 1"),
        (lambda: Given(torch.tensor([[torch.nan]])), "finite"),
    ],
)
def test_bad_policies(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_bad_mask():
    quantizer = VectorQuantizer(8, 16)
    with pytest.raises(ValueError, match=r"mask must be \[3, 7\].*got \[3\]"):
        quantizer(torch.randn(3, 7, 8), torch.ones(3, dtype=torch.bool))
    with pytest.raises(TypeError, match="mask must be bool, got int64"):
        quantizer(torch.randn(3, 7, 8), torch.ones(3, 7, dtype=torch.int64))
