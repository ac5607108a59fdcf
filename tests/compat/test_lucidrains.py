"""lucidrains' VectorQuantize, swapped: training, and what falls back to the original."""

from __future__ import annotations

import copy

import pytest
import torch

import fastvq

HEADS = {"heads": 4, "codebook_dim": 8, "separate_codebook_per_head": True}


@pytest.fixture
def twins():
    """VectorQuantize before and after, and its input."""

    def make(**options):
        from vector_quantize_pytorch import VectorQuantize

        before = VectorQuantize(dim=16, codebook_size=32, **options)
        after = copy.deepcopy(before)
        assert len(fastvq.accelerate(after).replaced) == 2
        return before, after, torch.randn(2, 60, 16)

    return make


def buffers(module):
    return dict(module._codebook.named_buffers())


def assert_same_state(before, after, budget):
    expected, actual = buffers(before), buffers(after)
    assert list(expected) == list(actual)
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=budget, atol=budget, msg=name)


TRAININGS = {
    "plain": {},
    "cosine": {"use_cosine_sim": True},
    "heads": HEADS,
    "shared heads": {"heads": 4, "codebook_dim": 8},
    "k-means": {"kmeans_init": True, "kmeans_iters": 3},
    "expiry": {"threshold_ema_dead_code": 2},
    "straight": {"rotation_trick": False},
    "diversity": {"codebook_diversity_loss_weight": 0.1},
    "cross entropy": {"commitment_use_cross_entropy_loss": True},
    "sampled": {"stochastic_sample_codes": True, "sample_codebook_temp": 0.5},
    "gumbel": {"stochastic_sample_codes": True, "straight_through": True, "rotation_trick": False},
    "orthogonal": {"orthogonal_reg_weight": 1.0, "ema_update": False},
    "frozen": {"freeze_codebook": True},
    "by hand": {"manual_ema_update": True},
}


@pytest.mark.parametrize("options", TRAININGS.values(), ids=TRAININGS)
def test_twenty_steps_train_the_same_codebook(twins, options):
    before, after, _ = twins(**options)
    data = torch.randn(20, 2, 60, 16)
    results = []
    for module in (before, after):
        torch.manual_seed(1)  # k-means, expiry and Gumbel noise draw
        results.append([module(x.clone().requires_grad_()) for x in data])
    for (a, i, loss_a), (b, j, loss_b) in zip(*results, strict=True):
        assert torch.equal(i, j)
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(loss_b, loss_a, rtol=1e-5, atol=1e-6)
    # sums of at most 480 float32 terms near 1, in two orders: 480 * 2^-24 = 3e-5 at the very worst;
    # the moving average keeps the steps' errors from piling up
    assert_same_state(before, after, budget=3e-5)


def test_sampling_and_learned_codes_use_the_original_in_training(twins, monkeypatch):
    calls = []
    nearest = fastvq.ops.nearest
    monkeypatch.setattr(fastvq.ops, "nearest", lambda *a, **k: calls.append(1) or nearest(*a, **k))
    for name in ("plain", "sampled", "gumbel", "orthogonal", "diversity", "cross entropy"):
        _, after, x = twins(**TRAININGS[name])
        for training in (True, False):
            calls.clear()
            after.train(training)(x)
            assert len(calls) == (name == "plain" or not training), (name, training)


CALLS = {
    "indices": lambda module, x: module(x, indices=torch.arange(120).view(2, 60) % 32),
    "topk": lambda module, x: module(x, topk=3),
    "mask": lambda module, x: module(x, mask=torch.arange(60).expand(2, 60) < 40),
    "lens": lambda module, x: module(x, lens=torch.tensor([10, 60])),
    "breakdown": lambda module, x: module(x, return_loss_breakdown=True),
    "frozen": lambda module, x: module(x, freeze_codebook=True),
    "weighted": lambda module, x: module(x, ema_update_weight=torch.rand(1, 32)),
    "weighted by a function": lambda module, x: module(
        x, ema_update_weight=lambda sums, counts: (counts > 2).float()
    ),
    "one token": lambda module, x: module(x[0]),
    "no update": lambda module, x: module(x, ema_update=False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_every_way_of_calling_agrees(twins, call, training):
    before, after, x = twins()
    results = []
    for module in (before, after):
        torch.manual_seed(1)
        results.append(call(module.train(training), x))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a)
    assert_same_state(before, after, budget=1e-5)
    assert "needs_distances" not in vars(after._codebook)


def test_masked_heads_agree(twins):
    # the module's own forward fails on masks with heads, its codebook does not
    before, after, _ = twins(heads=4, codebook_dim=8)
    x, mask = torch.randn(1, 2 * 4, 30, 8), torch.arange(30) < torch.tensor([[20], [10]])
    for a, b in zip(*(m._codebook(x, mask=mask)[:2] for m in (before, after)), strict=True):
        assert torch.equal(a, b)
    assert_same_state(before, after, budget=1e-5)


def test_cosine_codes_off_the_sphere_are_searched_as_the_peer_does(twins):
    # the largest product, also where codes were loaded without unit length
    before, after, x = twins(use_cosine_sim=True)
    lengths = torch.linspace(0.5, 2, 32).unsqueeze(-1)
    for module in (before, after):
        module.eval()._codebook.embed.mul_(lengths)
    for a, b in zip(before(x), after(x), strict=True):
        assert torch.equal(a, b)


def test_accumulated_statistics_agree(twins):
    before, after, x = twins()
    for module in (before, after):
        module(x, accum_ema_update=True)
        module(x + 1, accum_ema_update=True)
        module(x - 1)
    assert_same_state(before, after, budget=1e-5)


def test_updates_from_outside_agree(twins):
    before, after, x = twins()
    for module in (before, after):
        module.update_indices(x, torch.arange(120).view(2, 60) % 32)
    assert_same_state(before, after, budget=0)


def test_a_bad_vector_spoils_nothing_else(twins):
    before, after, x = twins()
    x[0, 7] = torch.nan
    before(x)
    assert before._codebook.embed.isnan().all()  # the peer's one-hot product
    _, indices, _ = after(x)
    assert after._codebook.embed.isfinite().all()
    assert indices[0, 7] == 0
    good = torch.ones(2, 60, dtype=torch.bool)
    good[0, 7] = False
    counts = torch.bincount(indices[good], minlength=32)
    torch.testing.assert_close(after._codebook.cluster_size[0], 0.8 + 0.2 * counts)


def test_codes_nearer_than_the_peers_floor_are_told_apart(twins):
    before, after, _ = twins()
    for module in (before, after):
        module.eval()._codebook.embed.mul_(1e-4)
    x = before.codebook + 1e-9
    assert not torch.equal(before(x[None])[1][0], torch.arange(32))
    assert torch.equal(after(x[None])[1][0], torch.arange(32))


def test_autocast_does_not_round_the_codes(twins):
    _, after, x = twins()
    after.eval()
    expected = after(x)
    with torch.autocast("cpu", torch.bfloat16):
        actual = after(x)
    assert torch.equal(actual[1], expected[1])
    assert torch.equal(actual[0], expected[0])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shared_codebook": True},
        {"quantize_dropout": True},
        {"beam_size": 2},
        {"implicit_neural_codebook": True},
        {"codebook_dim": 8},
    ],
    ids=lambda options: ",".join(options),
)
def test_residual_vq_trains_the_same(options):
    from vector_quantize_pytorch import ResidualVQ

    before = ResidualVQ(dim=16, codebook_size=32, num_quantizers=3, **options)
    after = copy.deepcopy(before)
    assert fastvq.accelerate(after).left == ()
    x = torch.randn(2, 40, 16)
    for training in (True, False):
        for step in range(3):
            results = []
            for module in (before, after):
                torch.manual_seed(step)
                named = {"rand_quantize_dropout_fixed_seed": step} if training else {}
                results.append(module.train(training)(x + step, **named))
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_grouped_residual_vq_agrees():
    from vector_quantize_pytorch import GroupedResidualVQ

    before = GroupedResidualVQ(dim=16, groups=2, codebook_size=32, num_quantizers=2)
    after = copy.deepcopy(before)
    assert len(fastvq.accelerate(after).replaced) == 8
    x = torch.randn(2, 40, 16)
    for a, b in zip(before(x), after(x), strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("training", [True, False])
def test_narrow_modules_agree(twins, training):
    before, after, x = twins()
    results = []
    for module in (before, after):
        module.train(training).to(torch.bfloat16)
        results.append(module._codebook(x.bfloat16())[:2])
    for a, b in zip(*results, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
