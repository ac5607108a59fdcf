# SPDX-License-Identifier: Apache-2.0
"""How the codes of a quantizer start, learn and come back: the papers' formulas by hand."""

import pytest
import torch

import fastvq
from fastvq import EMA, Frozen, Given, Gradient, KMeans, Uniform, VectorQuantizer, testing


def test_ema_is_the_papers(backend):
    """Appendix A.1 in its own variables, N and m, in float64, over several steps."""
    start = torch.randn(12, 6)
    quantizer = VectorQuantizer(6, 12, start=Given(start), learning=EMA(0.9), revival=None)
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


def test_usage():
    quantizer = VectorQuantizer(2, 4, start=Given(torch.eye(4, 2)), revival=None)
    quantizer.book.cluster_size.copy_(torch.tensor([[2.0, 1.0, 1.0, 0.0]]))
    usage = quantizer.usage()
    assert usage.perplexity == pytest.approx(2**1.5)
    assert usage.dead == 1
    assert usage.largest == pytest.approx(0.5)


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
    trained, other = VectorQuantizer(8, 16), VectorQuantizer(8, 16, revival=None)
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
