"""``beam_search``: against all sums there are, the beam by hand, and the codes of one by one."""

import itertools

import pytest
import torch

from fastvq.ops import beam_search, residual
from fastvq.ops.residual import beam as module


def inputs(n=60, levels=3, k=6, d=4):
    scale = 0.7 ** torch.arange(levels).view(-1, 1, 1)
    return torch.randn(n, d), torch.randn(levels, k, d) * scale


def errors(x, codebooks, indices):
    """Float64 squared errors ``[N]`` of the sums of codes."""
    total = sum(c.double()[i] for c, i in zip(codebooks, indices.unbind(-1), strict=True))
    return (x.double() - total).square().sum(-1)


def plain_beam(x, codebooks, beam):
    """The definition for one vector: lists of (error, path), sorted."""
    paths = [()]
    for _ in codebooks:
        longer = [(*path, k) for path in paths for k in range(codebooks.shape[1])]
        sums = {p: sum(codebooks[i, k].double() for i, k in enumerate(p)) for p in longer}
        longer.sort(key=lambda p: (x.double() - sums[p]).square().sum().item())
        paths = longer[:beam]
    return paths[0]


def test_wide_enough_it_finds_the_best_sum(backend):
    x, codebooks = inputs()
    found = errors(x, codebooks, beam_search(x, codebooks, beam=36))
    every = torch.tensor(list(itertools.product(range(6), repeat=3)))
    sums = sum(c.double()[i] for c, i in zip(codebooks, every.unbind(-1), strict=True))
    best = torch.cdist(x.double(), sums).square().amin(-1)
    torch.testing.assert_close(found, best, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beam", [2, 3, 7])
def test_keeps_what_the_definition_keeps(beam):
    x, codebooks = inputs(n=25)
    indices = beam_search(x, codebooks, beam=beam)
    greedy = errors(x, codebooks, residual(x, codebooks).indices)
    for row, path, limit in zip(x, indices, greedy, strict=True):
        wanted = torch.tensor([plain_beam(row, codebooks, beam)])
        if errors(row[None], codebooks, wanted)[0] < limit:
            assert path.tolist() == wanted[0].tolist()


def test_never_worse_than_one_level_after_another_and_better_in_the_mean():
    x, codebooks = inputs(n=400, levels=4, k=16, d=8)
    greedy = errors(x, codebooks, residual(x, codebooks).indices)
    for beam in (2, 5):
        found = errors(x, codebooks, beam_search(x, codebooks, beam=beam))
        assert (found <= greedy).all()
    assert found.mean() < 0.95 * greedy.mean()


def test_one_is_the_loop():
    x, codebooks = inputs()
    assert torch.equal(beam_search(x, codebooks, beam=1), residual(x, codebooks).indices)


def test_parts_do_not_matter(monkeypatch):
    x, codebooks = inputs()
    whole = beam_search(x.view(3, 20, 4), codebooks, beam=3)
    monkeypatch.setattr(module, "_WORKSPACE", 40)  # two rows at a time
    parts = beam_search(x, codebooks, beam=3)
    assert torch.equal(whole.view(60, 3), parts)


def test_bad_rows_and_bad_codes():
    x, codebooks = inputs()
    codebooks[1, 2] = torch.nan
    codebooks[0, 0] = torch.inf
    expected = beam_search(x, codebooks, beam=4)
    assert (expected[:, 1] != 2).all()
    assert (expected[:, 0] != 0).all()
    x[5, 1], x[7, 0] = torch.nan, torch.inf
    indices = beam_search(x, codebooks, beam=4)
    assert indices[[5, 7]].abs().max() == 0
    good = torch.isfinite(x).all(-1)
    assert torch.equal(indices[good], expected[good])


def test_empty_and_bad_input():
    x, codebooks = inputs()
    assert beam_search(x[:0], codebooks, beam=3).shape == (0, 3)
    with pytest.raises(ValueError, match="beam must be at least 1, got 0"):
        beam_search(x, codebooks, beam=0)
    with pytest.raises(TypeError, match="got int64"):
        beam_search(x.long(), codebooks)
