"""``nearest``: what every backend owes, on inputs chosen to break it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import fastvq
from fastvq import testing
from fastvq.ops import nearest

METRICS = ("euclidean", "cosine", "dot")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def by_shape(shape):
    return "x".join(map(str, shape))


# x, codebook, metric -> indices, distances: worked out by hand
BY_HAND = (
    pytest.param(
        [[0.0, 0.0], [3.0, 3.0], [1.0, 0.0]],
        [[0.0, 1.0], [2.0, 2.0]],
        "euclidean",
        [0, 1, 0],
        [1.0, 2.0, 2.0],
        id="euclidean",
    ),
    pytest.param(
        [[2.0, 0.0], [1.0, 1.0], [0.0, 0.0]],
        [[0.0, 5.0], [3.0, 0.0]],
        "cosine",
        [1, 0, 0],
        [0.0, 1 - 0.5**0.5, 1.0],
        id="cosine",
    ),
    pytest.param(
        [[1.0, 2.0], [-1.0, 0.0]],
        [[1.0, 0.0], [3.0, 1.0]],
        "dot",
        [1, 0],
        [-5.0, 1.0],
        id="dot",
    ),
    pytest.param([[5.0]], [[7.0], [3.0], [7.0]], "euclidean", [0], [4.0], id="tie-lowest"),
)


@pytest.mark.parametrize(("x", "codebook", "metric", "indices", "distances"), BY_HAND)
def test_by_hand(backend, x, codebook, metric, indices, distances):
    result = nearest(torch.tensor(x), torch.tensor(codebook), metric=metric)
    assert result.indices.tolist() == indices
    assert result.distances.tolist() == pytest.approx(distances, rel=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("case", testing.NEAREST_CASES, ids=lambda case: case.name)
@pytest.mark.usefixtures("poisoned_empty")
def test_exact_on_hard_inputs(backend, case, metric):
    x, codebook = case.make()
    result = nearest(x, codebook, metric=metric)
    testing.assert_nearest(x, codebook, result, metric)
    # float32 may not tell apart what float64 does, and the promise leaves it that room
    if metric == "euclidean" and case.name != "one_ulp_apart":
        with fastvq.use_backend("reference"):
            assert torch.equal(result.indices, nearest(x, codebook).indices)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", testing.SHAPES, ids=by_shape)
@pytest.mark.usefixtures("poisoned_empty")
def test_exact_on_odd_shapes(backend, shape, dtype):
    x, codebook = testing.gaussian(*shape, dtype=dtype)
    result = nearest(x, codebook)
    testing.assert_nearest(x, codebook, result)
    assert result.distances.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("x_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codebook_dtype", DTYPES, ids=str)
def test_dtypes_mix(backend, x_dtype, codebook_dtype):
    x, codebook = testing.gaussian(40, 30, 20)
    x, codebook = x.to(x_dtype), codebook.to(codebook_dtype)
    testing.assert_nearest(x, codebook, nearest(x, codebook))


def test_fast_is_nearly_exact(backend):
    x, codebook = testing.gaussian(100, 100, 32)
    fast = nearest(x, codebook, precision="fast").indices
    distances = testing.exact_distances(x, codebook)
    chosen = distances.gather(1, fast.unsqueeze(1)).squeeze(1)
    # the coarsest first pass works in bfloat16: 2^-8 for each factor of the product terms
    norms = x.double().norm(dim=1) * codebook.double().norm(dim=1).max()
    assert (chosen - distances.amin(1) <= 4 * 2**-8 * norms).all()


def test_heads_are_searched_apart(backend):
    x = torch.randn(6, 5, 3, 8)  # [..., H, D]
    codebook = torch.randn(3, 40, 8)  # [H, K, D]
    result = nearest(x, codebook)
    assert result.indices.shape == (6, 5, 3)
    for h in range(3):
        expected = nearest(x[:, :, h].contiguous(), codebook[h])
        assert torch.equal(result.indices[:, :, h], expected.indices)
        assert torch.equal(result.distances[:, :, h], expected.distances)


VIEWS = {
    "channels first": lambda x: testing.channels_first(x, 4, 5),
    "transposed": lambda x: x.t().contiguous().t(),
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "slice of channels": lambda x: torch.cat([x + 9, x, x - 9], 1)[:, 24:48],
    "expanded": lambda x: x[:1].expand(7, -1),
    "no leading dimension": lambda x: x[0],
    "permuted": lambda x: x.unflatten(0, (3, 4, 5)).permute(2, 0, 1, 3),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())
def test_views_give_the_answer_of_their_copy(backend, view):
    x, codebook = testing.gaussian(60, 40, 24)
    strided = view(x)
    result, expected = nearest(strided, codebook), nearest(strided.contiguous().clone(), codebook)
    assert result.indices.shape == strided.shape[:-1]
    assert torch.equal(result.indices, expected.indices)
    assert torch.equal(result.distances, expected.distances)


@pytest.mark.parametrize("metric", METRICS)
def test_strided_codebook(backend, metric):
    # full of duplicates: the layout must not decide between equal codes
    x, distinct = testing.gaussian(60, 8, 16)
    codebook = distinct[torch.randint(8, (31,))]
    strided = codebook.t().contiguous().t()
    result = nearest(x, strided, metric=metric)
    testing.assert_nearest(x, codebook, result, metric)
    assert torch.equal(result.indices, nearest(x, codebook, metric=metric).indices)


def test_same_bits_every_time(backend):
    x, codebook = testing.gaussian(70, 70, 20)
    first = nearest(x, codebook)
    for _ in range(3):
        again = nearest(x, codebook)
        assert torch.equal(first.indices, again.indices)
        assert torch.equal(first.distances, again.distances)


def test_bad_row_spoils_only_itself(backend):
    x, codebook = testing.gaussian(64, 40, 16)
    clean = nearest(x, codebook)
    x[3, 5], x[40, 0] = torch.nan, torch.inf
    spoiled = nearest(x, codebook)
    good = torch.isfinite(x).all(-1)
    assert torch.equal(spoiled.indices[good], clean.indices[good])
    assert torch.equal(spoiled.distances[good], clean.distances[good])
    assert spoiled.indices[~good].tolist() == [0, 0]
    assert spoiled.distances[~good].isnan().all()


@pytest.mark.parametrize("metric", METRICS)
def test_opcheck(backend, metric):
    x = testing.channels_first(torch.randn(24, 8), 3, 4).flatten(1, 2).unsqueeze(2)
    opcheck(torch.ops.fastvq.nearest.default, (x, torch.randn(1, 9, 8), metric, "exact"))


def test_compiles_whole(backend):
    compiled = torch.compile(lambda x, c: nearest(x, c), fullgraph=True)
    for n in (30, 41):
        x, codebook = testing.gaussian(n, 20, 8)
        expected = nearest(x, codebook)
        for actual, wanted in zip(compiled(x, codebook), expected, strict=True):
            assert torch.equal(actual, wanted)


def test_is_not_differentiable():
    x = torch.randn(3, 4, requires_grad=True)
    result = nearest(x, torch.randn(5, 4, requires_grad=True))
    assert not result.distances.requires_grad


PROPERTIES = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
SIZES = {"n": st.integers(1, 20), "k": st.integers(1, 60), "d": st.integers(1, 40)}


@PROPERTIES
@given(**SIZES, seed=st.integers(0, 2**16))
def test_permuting_codes_permutes_indices(backend, n, k, d, seed):
    x, codebook = testing.gaussian(n, k, d, seed=seed)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(order[nearest(x, codebook[order]).indices], nearest(x, codebook).indices)


@PROPERTIES
@given(**SIZES, exponent=st.integers(-40, 40))
def test_scaling_by_a_power_of_two_changes_nothing(backend, n, k, d, exponent):
    x, codebook = testing.gaussian(n, k, d)
    scaled = nearest(x * 2.0**exponent, codebook * 2.0**exponent)
    assert torch.equal(scaled.indices, nearest(x, codebook).indices)


@PROPERTIES
@given(**SIZES, cut=st.integers(0, 20))
def test_splitting_the_batch_changes_nothing(backend, n, k, d, cut):
    x, codebook = testing.gaussian(n, k, d)
    whole = nearest(x, codebook)
    parts = [nearest(x[:cut], codebook), nearest(x[cut:], codebook)]
    assert torch.equal(torch.cat([p.indices for p in parts]), whole.indices)
    assert torch.equal(torch.cat([p.distances for p in parts]), whole.distances)


BAD_INPUT = {
    "rank": (torch.randn(3, 4), torch.randn(4), {}, ValueError, r"\[K, D\].*got \[4\]"),
    "channels": (
        torch.randn(3, 64),
        torch.randn(512, 32),
        {},
        ValueError,
        r"codebook must be \[K, D\] with D = 64.*got \[512, 32\]",
    ),
    "heads": (
        torch.randn(3, 2, 4),
        torch.randn(3, 5, 4),
        {},
        ValueError,
        r"H = 2, D = 4.*got \[3, 5, 4\]",
    ),
    "no codes": (torch.randn(3, 4), torch.randn(0, 4), {}, ValueError, "at least one code"),
    "integers": (torch.ones(3, 4, dtype=torch.int64), torch.randn(5, 4), {}, TypeError, "int64"),
    "not a tensor": ([[1.0]], torch.randn(5, 1), {}, TypeError, "list"),
    "device": (torch.randn(3, 4), torch.randn(5, 4, device="meta"), {}, ValueError, "meta"),
    "metric": (
        torch.randn(3, 4),
        torch.randn(5, 4),
        {"metric": "euclidian"},
        ValueError,
        "did you mean 'euclidean'",
    ),
    "precision": (
        torch.randn(3, 4),
        torch.randn(5, 4),
        {"precision": "tf32"},
        ValueError,
        "exact, fast",
    ),
}


@pytest.mark.parametrize(
    ("x", "codebook", "options", "error", "text"), BAD_INPUT.values(), ids=BAD_INPUT.keys()
)
def test_bad_input(x, codebook, options, error, text):
    with pytest.raises(error, match=text):
        nearest(x, codebook, **options)
