"""``statistics``: counts and sums by code, deterministic and contained."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

from fastvq import testing
from fastvq.ops import statistics

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# (N, K, D): none and one of each; codes of more rows than a block takes, and than a piece; channels
# over a tile, and over two
SHAPES = (
    (1, 1, 1),
    (0, 5, 4),
    (7, 1, 3),
    (5, 17, 1),
    (33, 16, 2),
    (63, 10, 17),
    (300, 2, 64),
    (129, 3, 100),
    (17, 5, 300),
    (40, 3, 1100),
)


def expected(x, indices, num_codes, codebook=None):
    """Float64 counts, sums and sums of magnitudes of x ``[N, D]``, one row at a time."""
    counts = torch.zeros(num_codes, dtype=torch.float64)
    sums, sizes = torch.zeros(2, num_codes, x.shape[1], dtype=torch.float64)
    for row, index in zip(x.double(), indices.tolist(), strict=True):
        if index < 0 or not torch.isfinite(row).all():
            continue
        term = row if codebook is None else row - codebook[index].double()
        counts[index] += 1
        sums[index] += term
        sizes[index] += term.abs()
    return counts, sums, sizes


def check(x, indices, num_codes, codebook=None):
    actual = statistics(x, indices, num_codes, codebook=codebook)
    counts, sums, sizes = expected(x, indices, num_codes, codebook)
    assert torch.equal(actual.counts.double(), counts)
    # n terms summed in float32 in any order: (n + 1) units of half an ulp of the magnitudes
    unit = 2.0**-53 if actual.sums.dtype == torch.float64 else 2.0**-24
    testing.assert_within(actual.sums, sums, (counts.max() + 2) * unit * sizes)
    return actual


def test_by_hand(backend):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    counts, sums = statistics(x, torch.tensor([2, 0, 2, -1]), 3)
    assert counts.tolist() == [1.0, 0.0, 2.0]
    assert sums.tolist() == [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]
    codebook = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    _, residuals = statistics(x, torch.tensor([2, 0, 2, -1]), 3, codebook=codebook)
    assert residuals.tolist() == [[2.0, 3.0], [0.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.usefixtures("poisoned_empty")
def test_shapes_and_dtypes(backend, shape, dtype, residual):
    x, codebook = testing.gaussian(*shape, dtype=dtype)
    indices = torch.randint(-1, shape[1], (shape[0],))
    actual = check(x, indices, shape[1], codebook if residual else None)
    assert actual.sums.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_one_code_takes_every_row(backend):
    x = torch.randn(3000, 12)
    check(x, torch.full((3000,), 4), 9)


def test_most_codes_take_none(backend):
    check(torch.randn(20, 6), torch.randint(0, 150, (20,)), 150)


def test_channels_first(backend):
    x = testing.channels_first(torch.randn(40, 10), 4, 5)
    indices = torch.randint(-1, 7, x.shape[:-1])
    actual = statistics(x, indices, 7)
    copied = statistics(x.reshape(40, 10).clone(), indices.flatten(), 7)
    assert torch.equal(actual.counts, copied.counts)
    assert torch.equal(actual.sums, copied.sums)


def test_strided_indices_and_sliced_rows(backend):
    buffer = torch.full((42, 30), 42.0)
    x = buffer[1:41, 10:20]
    x.copy_(torch.randn(40, 10))
    check(x, torch.randint(-1, 7, (80,))[::2], 7)


def test_heads(backend):
    x, indices = torch.randn(30, 3, 8), torch.randint(-1, 5, (30, 3))
    counts, sums = statistics(x, indices, (3, 5))
    assert counts.shape == (3, 5)
    assert sums.shape == (3, 5, 8)
    for h in range(3):
        alone = statistics(x[:, h].clone(), indices[:, h].clone(), 5)
        assert torch.equal(counts[h], alone.counts)
        assert torch.equal(sums[h], alone.sums)


def test_bad_rows_are_left_out(backend):
    x = torch.randn(60, 8)
    x[3, 5], x[10, 0], x[59, 7] = torch.nan, torch.inf, -torch.inf
    indices = torch.randint(0, 6, (60,))
    actual = check(x, indices, 6)
    assert actual.counts.sum() == 57


def test_bad_rows_of_a_code_that_takes_most(backend):
    x = torch.randn(3000, 12)
    x[::501, 3] = torch.nan
    x[1500:1700] = torch.inf
    codebook = torch.randn(9, 12)
    indices = torch.where(torch.rand(3000) < 0.9, 4, torch.randint(9, (3000,)))
    for origin in (None, codebook):
        check(x, indices, 9, origin)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_16_bit_value(backend, dtype):
    def rows(values):
        """With some values again, where they fill no whole number of rows."""
        number = -(-len(values) // 1024)
        return values.repeat(4)[: number * 1024].view(number, 1024)

    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    finite = torch.isfinite(every)
    x = torch.cat([rows(every[finite]), rows(every[~finite])])
    counts, sums = statistics(x, torch.arange(len(x)), len(x))
    finite = torch.isfinite(x)
    assert torch.equal(counts, finite.all(-1).float())
    # the interpreter of Triton takes the subnormals of bfloat16, which are float32's, for zero
    exact = torch.where(finite, x.double(), 0)
    testing.assert_within(sums, exact, torch.finfo(torch.float32).smallest_normal)


def test_same_bits_every_time(backend):
    x, indices = torch.randn(3000, 12), torch.randint(0, 9, (3000,))
    first = statistics(x, indices, 9)
    for _ in range(3):
        assert torch.equal(statistics(x, indices, 9).sums, first.sums)


def test_residuals_keep_precision_far_from_the_origin(backend):
    x, codebook = testing.gaussian(500, 4, 6)
    check(x + 1e6, torch.randint(0, 4, (500,)), 4, codebook + 1e6)


def test_opcheck(backend):
    x = testing.channels_first(torch.randn(24, 8), 3, 4).flatten(1, 2).unsqueeze(2)
    indices = torch.randint(-1, 9, (2, 12, 1))
    for codebook in (None, torch.randn(1, 9, 8)):
        opcheck(torch.ops.fastvq.statistics.default, (x, indices, 9, codebook))


def test_compiles_whole(backend):
    compiled = torch.compile(lambda x, i: statistics(x, i, 9), fullgraph=True)
    for n in (30, 41):
        x, indices = torch.randn(n, 5), torch.randint(0, 9, (n,))
        assert torch.equal(compiled(x, indices).sums, statistics(x, indices, 9).sums)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(n=st.integers(1, 60), k=st.integers(1, 12), d=st.integers(1, 20))
def test_renaming_codes_permutes_the_rows(backend, n, k, d):
    x, _ = testing.gaussian(n, 1, d)
    indices, names = torch.randint(0, k, (n,)), torch.randperm(k)
    plain, renamed = statistics(x, indices, k), statistics(x, names[indices], k)
    assert torch.equal(renamed.sums[names], plain.sums)
    assert torch.equal(renamed.counts[names], plain.counts)


@pytest.mark.parametrize("index", [9, -2])
def test_index_out_of_range(backend, index):
    with pytest.raises(IndexError, match=rf"\[-1, K = 9\), got {index}"):
        statistics(torch.randn(3, 2), torch.tensor([0, index, 1]), 9)


BAD_INPUT = {
    "indices": ({"indices": torch.zeros(4, dtype=torch.int64)}, ValueError, r"\[5\].*got \[4\]"),
    "codes": ({"num_codes": 0}, ValueError, "at least 1, got 0"),
    "heads": ({"num_codes": (2, 9)}, ValueError, "H = 2"),
    "codebook": ({"codebook": torch.randn(8, 3)}, ValueError, r"\[9, 3\].*got \[8, 3\]"),
    "dtype": ({"x": torch.ones(5, 3, dtype=torch.int32)}, TypeError, "got int32"),
}


@pytest.mark.parametrize(("change", "error", "text"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_bad_input(change, error, text):
    arguments = {
        "x": torch.randn(5, 3),
        "indices": torch.zeros(5, dtype=torch.int64),
        "num_codes": 9,
        **change,
    }
    with pytest.raises(error, match=text):
        statistics(**arguments)
