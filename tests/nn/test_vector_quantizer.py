"""``VectorQuantizer``: the shared contract, then its own numbers against the papers' formulas."""

import pytest
import torch
from torch import nn

import fastvq
from fastvq import EMA, Frozen, Given, Gradient, KMeans, Revival, Uniform, VectorQuantizer, testing
from fastvq.testing.contract import QuantizerContract


class TestContract(QuantizerContract):
    def make(self, channel_dim=-1):
        return VectorQuantizer(self.dim, 32, channel_dim=channel_dim)


class TestContractWithEverything(QuantizerContract):
    """Heads, projections, unit norm, accumulation: the other branch of each."""

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
    def make(self, channel_dim=-1):
        return VectorQuantizer(
            self.dim, 32, learning=Gradient(), metric="dot", channel_dim=channel_dim
        )


class TestContractFrozen(QuantizerContract):
    def make(self, channel_dim=-1):
        return VectorQuantizer(
            self.dim, 32, learning=Frozen(), start=Uniform(2.0), channel_dim=channel_dim
        )


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


def test_ema_is_the_papers(backend):
    """Appendix A.1 in its own variables, N and m, in float64, over several steps."""
    start = torch.randn(12, 6)
    learning = EMA(0.9, warmup=False)
    quantizer = VectorQuantizer(6, 12, start=Given(start), learning=learning, revival=None)
    size, total = torch.ones(12, dtype=torch.float64), start.double()
    for step in range(20):
        x = torch.randn(40, 6) + 0.1 * step
        codes = (total / size.unsqueeze(-1)).float()
        indices = quantizer.encode(x)
        assert not testing.wrong_codes(x, codes, indices).any()
        quantizer(x)
        counts = torch.bincount(indices, minlength=12).double()
        sums = torch.zeros(12, 6, dtype=torch.float64).index_add_(0, indices, x.double())
        size, total = 0.9 * size + 0.1 * counts, 0.9 * total + 0.1 * sums
        testing.assert_within(quantizer.codebook, total / size.unsqueeze(-1), 1e-5)


def test_the_first_updates_forget_more(backend):
    """By the formula of `EMA`, in float64: codes with gamma_t, counts with gamma."""
    start = torch.randn(12, 6)
    quantizer = VectorQuantizer(6, 12, start=Given(start), learning=EMA(0.6), revival=None)
    size, codes = torch.ones(12, dtype=torch.float64), start.double()
    # from the 14th update on t / (t + 9) is above 0.6
    for t in range(1, 20):
        x = torch.randn(40, 6) + 0.1 * t
        indices = quantizer.encode(x)
        quantizer(x)
        counts = torch.bincount(indices, minlength=12).double()
        sums = torch.zeros(12, 6, dtype=torch.float64).index_add_(0, indices, x.double())
        gamma = min(0.6, t / (t + 9))
        moving = gamma * size + (1 - gamma) * counts
        codes = codes + (1 - gamma) / moving[:, None] * (sums - counts[:, None] * codes)
        size = 0.6 * size + 0.4 * counts
        testing.assert_within(quantizer.codebook, codes, 1e-5)
        testing.assert_within(quantizer.book.cluster_size[0], size, 1e-5)
        codes = quantizer.codebook.double()


def check_first_steps(codebook, data):
    """No code may leave the neighbourhood of the data."""
    assert codebook.norm(dim=-1).max() <= 10 * data.norm(dim=-1).max()


def test_no_code_runs_away_in_the_first_step():
    data = torch.randn(2048, 64)
    for start in (KMeans(), Uniform(), Given(torch.randn(512, 64))):
        quantizer = VectorQuantizer(64, 512, start=start, revival=None)
        for _ in range(3):
            quantizer(data)
            check_first_steps(quantizer.codebook, data)


def test_the_well_known_bug_fails_that_check():
    # counts that start at 0 beside sums that start at the codes, then Laplace smoothing
    data, codebook = torch.randn(2048, 64), torch.randn(512, 64)
    indices = fastvq.ops.nearest(data, codebook).indices
    counts, sums = fastvq.ops.statistics(data, indices, 512)
    size = 0.01 * counts
    total = 0.99 * codebook + 0.01 * sums
    smoothed = (size + 1e-5) / (size.sum() + 512e-5) * size.sum()
    with pytest.raises(AssertionError):
        check_first_steps(total / smoothed.unsqueeze(-1), data)


def test_most_codes_are_used_soon():
    data, _ = testing.clustered(2000, 80, 16, spread=0.3)
    for start in (KMeans(), Uniform()):
        quantizer = VectorQuantizer(16, 64, start=start)
        for _ in range(200):
            quantizer(data[torch.randint(2000, (256,))])
        used = quantizer.eval()(data).indices.unique().numel()
        assert used >= 0.9 * 64


def test_accumulated_update_is_that_of_the_whole_batch(backend):
    x, start = torch.randn(3, 30, 6), torch.randn(10, 6)
    whole = VectorQuantizer(6, 10, start=Given(start), revival=None)
    parts = VectorQuantizer(6, 10, start=Given(start), revival=None, learning=EMA(every=3))
    for _ in range(4):
        whole(x)
        for part in x:
            before = parts.codebook.clone()
            parts(part)
        assert not torch.equal(parts.codebook, before)
    testing.assert_within(parts.codebook, whole.codebook.double(), 1e-6)
    testing.assert_within(parts.book.cluster_size, whole.book.cluster_size.double(), 1e-5)


def test_gradient_learning_is_equation_three(backend):
    start = torch.randn(10, 6)
    quantizer = VectorQuantizer(
        6, 10, learning=Gradient(weight=0.5), start=Given(start), commitment_weight=0.25
    )
    x = torch.randn(40, 6)
    _, indices, loss = quantizer(x)
    loss.backward()
    codes = start.clone().requires_grad_()
    squared = (x - codes[indices]).square().mean()
    (expected,) = torch.autograd.grad(0.5 * squared, codes)
    testing.assert_within(quantizer.book.vectors.grad[0], expected.double(), 1e-7)
    assert loss.item() == pytest.approx(0.75 * squared.item())


def test_frozen_codes_never_move():
    start = torch.randn(10, 6)
    quantizer = VectorQuantizer(6, 10, learning=Frozen(), start=Given(start))
    for _ in range(30):
        quantizer(torch.randn(40, 6) + 5)
    assert torch.equal(quantizer.codebook, start)
    assert quantizer.usage().largest > 0.1


def test_kmeans_finds_the_clusters():
    data, centres = testing.clustered(4000, 8, 16, spread=0.01)
    quantizer = VectorQuantizer(16, 8, learning=Frozen())
    quantizer(data)
    nearest = fastvq.ops.nearest(centres, quantizer.codebook.clone())
    # Lloyd may merge two clusters from one start, and the farthest-row rule repairs most of that
    assert (nearest.distances < 0.1).sum() >= 6


def test_kmeans_runs_once_and_on_training_data_only():
    quantizer = VectorQuantizer(16, 8, learning=Frozen()).eval()
    placeholder = quantizer.codebook.clone()
    quantizer(torch.randn(100, 16))
    assert torch.equal(quantizer.codebook, placeholder)
    quantizer.train()(torch.randn(100, 16))
    started = quantizer.codebook.clone()
    assert not torch.equal(started, placeholder)
    quantizer(torch.randn(100, 16) + 3)
    assert torch.equal(quantizer.codebook, started)


def test_kmeans_on_fewer_rows_than_codes_makes_no_duplicates():
    quantizer = VectorQuantizer(16, 64, learning=Frozen())
    data = torch.randn(20, 16)
    quantizer(data)
    assert quantizer.codebook.unique(dim=0).shape[0] == 64
    assert fastvq.ops.nearest(data, quantizer.codebook.clone()).distances.max() == 0


def test_kmeans_sees_no_masked_row():
    quantizer = VectorQuantizer(16, 8, learning=Frozen())
    x, mask = torch.randn(4, 50, 16), torch.rand(4, 50) > 0.5
    x[~mask] = 1e6
    quantizer(x, mask)
    assert quantizer.codebook.abs().max() < 10


def test_dead_codes_come_back_as_data(backend):
    far = torch.full((5, 6), 100.0)
    quantizer = VectorQuantizer(
        6, 10, start=Given(torch.cat([torch.randn(5, 6), far])), learning=EMA(0.9)
    )
    data = torch.randn(60, 6)
    for _ in range(15):
        quantizer(data)
    assert quantizer.codebook.abs().max() < 10
    assert quantizer.usage().dead == 0


def test_revival_is_relative_to_uniform_use():
    # 512 codes and 64 vectors a step: no code can reach one hit a step, and yet none is dead
    quantizer = VectorQuantizer(6, 512, start=Given(torch.randn(512, 6)), learning=EMA(0.999))
    before = quantizer.codebook.clone()
    for _ in range(5):
        quantizer(torch.randn(64, 6))
    moved = (quantizer.codebook - before).norm(dim=-1)
    assert (moved == 0).sum() > 200


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


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
def test_metric_decides_the_code(backend, metric):
    quantizer = VectorQuantizer(8, 16, metric=metric, start=Given(torch.randn(16, 8))).eval()
    x = torch.randn(50, 8)
    indices = quantizer.encode(x)
    assert not testing.wrong_codes(x, quantizer.codebook.clone(), indices, metric).any()


def test_cosine_lives_on_the_sphere(backend):
    quantizer = VectorQuantizer(8, 16, metric="cosine")
    for _ in range(5):
        quantized, _, _ = quantizer(torch.randn(40, 8) * 7)
    one = torch.ones((), dtype=torch.float64)
    testing.assert_within(quantizer.codebook.norm(dim=-1), one.expand(16), 1e-6)
    testing.assert_within(quantized.norm(dim=-1), one.expand(40), 1e-6)


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


def test_usage():
    quantizer = VectorQuantizer(2, 4, start=Given(torch.eye(4, 2)), revival=None)
    quantizer.book.cluster_size.copy_(torch.tensor([[2.0, 1.0, 1.0, 0.0]]))
    usage = quantizer.usage()
    assert usage.perplexity == pytest.approx(2**1.5)
    assert usage.dead == 1
    assert usage.largest == pytest.approx(0.5)


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


@pytest.mark.parametrize(
    "useless",
    [
        lambda vq, x: vq(x[:0]),
        lambda vq, x: vq(x, torch.zeros(len(x), dtype=torch.bool)),
        lambda vq, x: vq(x * torch.nan),
    ],
    ids=["empty", "masked", "nan"],
)
def test_a_useless_first_batch_does_not_use_up_the_start(useless):
    quantizer, x = VectorQuantizer(8, 16), torch.randn(128, 8) * 5 + 100
    useless(quantizer, x)
    assert not quantizer.book.started
    quantizer(x)
    assert quantizer.book.started
    assert quantizer.codebook.mean() == pytest.approx(100, abs=5)


def test_a_start_that_others_wrote_counts():
    # as DistributedDataParallel and averaged models do: into the buffers, past load_state_dict
    slow = EMA(warmup=False)
    trained, other = (VectorQuantizer(8, 16, learning=slow, revival=None) for _ in range(2))
    trained(torch.randn(64, 8) + 9)
    for mine, theirs in zip(other.buffers(), trained.buffers(), strict=True):
        mine.copy_(theirs)
    before = other.codebook.clone()
    other(torch.randn(64, 8) - 9)
    assert (other.codebook - before).abs().max() < 8


def test_a_start_that_failed_is_tried_again(monkeypatch):
    def fail(*_):
        raise MemoryError

    quantizer = VectorQuantizer(8, 16)
    with monkeypatch.context() as patch:
        patch.setattr(fastvq.nn.start, "kmeans", fail)
        with pytest.raises(MemoryError):
            quantizer(torch.randn(64, 8))
    quantizer(torch.randn(64, 8) + 50)
    assert quantizer.codebook.mean() > 40


def test_one_row_starts_distinct_codes():
    for row in (torch.randn(1, 8), torch.zeros(1, 8)):
        quantizer = VectorQuantizer(8, 16, learning=Frozen())
        quantizer(row)
        assert quantizer.codebook.unique(dim=0).shape[0] == 16


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


def test_finite_vectors_that_overflow_leave_the_codes_finite():
    quantizer = VectorQuantizer(8, 16, start=Uniform())
    quantizer(torch.full((2, 8), 3e38))
    assert torch.isfinite(quantizer.codebook).all()


def test_half_checkpoint_becomes_float32():
    trained, other = VectorQuantizer(8, 16), VectorQuantizer(8, 16)
    trained(torch.randn(64, 8))
    half = {k: v.half() if v.is_floating_point() else v for k, v in trained.state_dict().items()}
    other.load_state_dict(half, assign=True)
    assert other.codebook.dtype == other.book.cluster_size.dtype == torch.float32


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
