"""The codebook's step by Triton's kernels: what torch makes of the same step, in place."""

import copy
import importlib

import pytest
import torch

import fastvq
from fastvq import EMA, Frozen, Given, Gradient, Revival, testing
from fastvq.nn import codebook
from fastvq.nn._levels import Levels, SharedLevels
from fastvq.nn.codebook import Codebook

from ..conftest import using

LEARNING, REVIVAL = EMA(0.9), Revival(0.2)


def made(
    heads=1, codes=10, dim=6, *, learning=LEARNING, revival=REVIVAL, unit_norm=False, kind=Codebook
):
    """A codebook that has seen use, of which every third code is dead."""
    start = Given(torch.randn(codes, dim) if heads == 1 else torch.randn(heads, codes, dim))
    book = kind(
        heads, codes, dim, learning=learning, start=start, revival=revival, unit_norm=unit_norm
    )
    book.cluster_size.uniform_(1, 2)[:, ::3] = 0.01
    return book


def batch(book, *, images=2, rows=15):
    """Rows of the batch, and indices that leave the dead codes dead and some rows without any."""
    heads, codes, dim = book.vectors.shape
    indices = torch.randint(codes, (images, rows, heads))
    indices[indices % 3 == 0] = -1
    return torch.randn(images, rows, heads, dim), indices


def learned(book, x, indices, monkeypatch):
    """The codebook after a step by torch and by the kernels, which draw the same rows."""
    by_torch, by_kernels = copy.deepcopy(book), copy.deepcopy(book)
    buffers = by_kernels.vectors.data_ptr(), by_kernels.cluster_size.data_ptr()
    # as on a GPU, where nobody looks whether a code is dead before drawing
    monkeypatch.setattr(Codebook, "_may_look", staticmethod(lambda _: False))
    torch.manual_seed(5)
    with fastvq.use_backend("reference"):
        by_torch.learn(x, indices)
    torch.manual_seed(5)
    with using("triton"), monkeypatch.context() as patch:
        patch.delattr(Codebook, "_move")
        # so that a head has more codes than are taken at once
        kernels = importlib.import_module("fastvq.nn._triton_update")
        patch.setattr(kernels, "_SIZES", 16)
        by_kernels.learn(x, indices)
    assert buffers == (by_kernels.vectors.data_ptr(), by_kernels.cluster_size.data_ptr())
    return by_torch, by_kernels


def check(book, x, indices, monkeypatch):
    """Both steps agree; how many codes came back."""
    by_torch, by_kernels = learned(book, x, indices, monkeypatch)
    sizes = by_torch.cluster_size
    testing.assert_within(by_kernels.cluster_size, sizes.double(), 1e-6 * sizes.max().item())
    expected = by_torch.vectors.detach()
    testing.assert_within(by_kernels.vectors.detach(), expected.double(), 1e-5)
    back = sizes > book.cluster_size
    revived = back & (book.cluster_size < 0.1)
    # a row of the batch is copied, not computed
    assert type(book) is not Codebook or torch.equal(by_kernels.vectors[revived], expected[revived])
    return int(revived.sum())


@pytest.mark.parametrize("learning", [EMA(0.9), EMA(0.0), Gradient()], ids=str)
@pytest.mark.parametrize("unit_norm", [False, True])
@pytest.mark.parametrize("revival", [REVIVAL, None], ids=["revival", "none"])
@pytest.mark.parametrize(("heads", "codes", "dim"), [(1, 10, 6), (3, 37, 65), (1, 1, 1)])
@pytest.mark.usefixtures("poisoned_empty")
def test_a_step_is_that_of_torch(heads, codes, dim, revival, unit_norm, learning, monkeypatch):
    book = made(heads, codes, dim, learning=learning, revival=revival, unit_norm=unit_norm)
    returned = check(book, *batch(book), monkeypatch)
    assert (returned > 0) == (revival is not None and codes > 1)


def test_frozen_codes_stay_and_their_use_is_recorded(monkeypatch):
    book = made(learning=Frozen(), revival=None)
    _, by_kernels = learned(book, *batch(book), monkeypatch)
    assert torch.equal(by_kernels.vectors, book.vectors)
    check(book, *batch(book), monkeypatch)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_brings_no_code_back(bad, monkeypatch):
    book = made(3, 40, 70)
    x, indices = batch(book)
    x[:, ::2, :, 66] = bad
    assert 0 < check(book, x, indices, monkeypatch) < 3 * 14
    x[..., 2] = bad
    assert check(book, x, indices, monkeypatch) == 0


def test_a_row_without_a_code_brings_no_code_back(monkeypatch):
    book = made(2, 40)
    x, indices = batch(book)
    indices[:, :, 1] = -1
    # and a head that was asked nothing forgets nothing
    _, by_kernels = learned(book, x, indices, monkeypatch)
    assert torch.equal(by_kernels.cluster_size[1], book.cluster_size[1])
    assert torch.equal(by_kernels.vectors[1], book.vectors[1])
    assert 0 < check(book, x, indices, monkeypatch) <= 14


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_views_and_16_bits(dtype, monkeypatch):
    book = made(2, 12, 6)
    images = torch.randn(3, 12, 4, 5).to(dtype)
    x = images.flatten(2).movedim(1, -1).unflatten(-1, (2, 6))
    indices = torch.randint(12, (3, 2, 20)).movedim(1, -1)
    indices[indices % 3 == 0] = -1
    assert check(book, x, indices, monkeypatch) > 0


@pytest.mark.parametrize("shape", [(0, 15), (2, 0)])
def test_an_empty_batch_changes_nothing(shape, monkeypatch):
    book = made(2, 12, 6)
    x, indices = torch.randn(*shape, 2, 6), torch.zeros(*shape, 2, dtype=torch.int64)
    by_torch, by_kernels = learned(book, x, indices, monkeypatch)
    for after in (by_torch, by_kernels):
        assert torch.equal(after.vectors, book.vectors)
        assert torch.equal(after.cluster_size, book.cluster_size)


# numpy, which interprets, warns
@pytest.mark.filterwarnings("ignore:overflow encountered in reduce")
def test_sums_that_overflow_and_counts_that_vanished(monkeypatch):
    book = made(learning=EMA(0.0), revival=None)
    x, indices = batch(book)
    indices[0, :4] = 1
    x[indices == 1] = 3e38
    book.cluster_size.zero_()
    by_torch, by_kernels = learned(book, x, indices, monkeypatch)
    assert torch.equal(by_kernels.vectors[0, 1], book.vectors[0, 1])
    testing.assert_within(by_kernels.vectors, by_torch.vectors.double(), 1e-5)


@pytest.mark.parametrize("kind", [Levels, SharedLevels])
def test_levels(kind, monkeypatch):
    heads = 1 if kind is SharedLevels else 3
    book = made(heads, 12, 6, kind=lambda *_, **options: kind(3, 12, 6, **options))
    indices = torch.randint(12, (2, 15, 3))
    indices[indices % 3 == 0] = 1
    indices[0, :7, 2] = -1
    assert check(book, torch.randn(2, 15, 6), indices, monkeypatch) > 0


def test_the_batch_after_the_first_is_learned_as_well(monkeypatch):
    book = made(2, 12, 6)
    by_torch, by_kernels = copy.deepcopy(book), copy.deepcopy(book)
    for step in range(4):
        x, indices = batch(book)
        for one, name in ((by_torch, "reference"), (by_kernels, "triton")):
            torch.manual_seed(step)
            with using(name):
                one.learn(x, indices)
    testing.assert_within(by_kernels.vectors, by_torch.vectors.double(), 1e-5)
    assert by_torch.usage().dead == by_kernels.usage().dead


@pytest.mark.parametrize("learning", [LEARNING, Gradient()], ids=str)
def test_a_backward_that_needs_what_was_overwritten_says_so(learning):
    book = made(learning=learning, revival=None)
    x = torch.randn(3, 6, requires_grad=True)
    loss = (x * book.vectors[0, :3]).sum()
    with using("triton"):
        book.learn(*batch(book))
    if isinstance(learning, Gradient):
        loss.backward()
        return
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("why", ["accumulation", "float64", "processes", "layout"])
def test_torch_takes_what_the_kernels_do_not(why, monkeypatch):
    book = made(learning=EMA(0.9, every=2 if why == "accumulation" else 1), revival=None)
    if why == "layout":
        book.vectors = book.vectors.mT.contiguous().mT
    monkeypatch.setattr(codebook, "distributed", lambda: why == "processes")
    monkeypatch.delattr(Codebook, "_by_kernels")
    x, indices = batch(book)
    before = book.vectors.clone()
    with using("triton"):
        for _ in range(2):
            book.learn(x.double() if why == "float64" else x, indices)
    assert not torch.equal(book.vectors, before)
