"""DAC's checkpoints: what the converted quantizers answer, in both layouts, both ways."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils import parametrizations

from fastvq import ProjectedResidualVQ, testing
from fastvq.compat import from_fastvq, to_fastvq

WIDTH, K, D, Q = 12, 32, 4, 3


def dac():
    from transformers.models.dac import modeling_dac as library

    config = SimpleNamespace(
        hidden_size=WIDTH, codebook_size=K, codebook_dim=D, n_codebooks=Q, quantizer_dropout=0
    )
    made = library.DacResidualVectorQuantizer(config).eval()
    for level in made.quantizers:
        # of unequal lengths, or the length would have no say
        level.codebook.weight.data *= torch.rand(K, 1) * 4
    return made


def assert_alike(theirs, ours, x):
    """Codes, sums, decoded vectors and losses of x ``[B, WIDTH, T]``; there the levels come 2nd."""
    expected, codes, _, commitment, codebook = theirs(x)
    quantized, indices, loss = ours(x)
    assert torch.equal(indices.movedim(-1, 1), codes)
    # the projections sum products in another order, and that three times
    testing.assert_within(quantized, expected.double(), 1e-5)
    testing.assert_within(ours.decode(indices), theirs.from_codes(codes)[0].double(), 1e-5)
    wanted = 0.25 * commitment.mean() + codebook.mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.equal(ours.encode(x, levels=2).movedim(-1, 1), theirs(x, 2)[1])


def test_answers_alike_both_ways():
    theirs, x = dac(), torch.randn(2, WIDTH, 50)
    ours = to_fastvq("dac.transformers", theirs.state_dict()).build().eval()
    assert isinstance(ours, ProjectedResidualVQ)
    assert_alike(theirs, ours, x)
    other = dac()
    other.load_state_dict(from_fastvq("dac.transformers", ours), strict=True)
    for a, b in zip(other(x), theirs(x), strict=True):
        assert torch.equal(a, b)


def test_gradients_are_the_peers():
    theirs, x = dac(), torch.randn(2, WIDTH, 50, requires_grad=True)
    ours = to_fastvq("dac.transformers", theirs.state_dict()).build()
    cotangent, gradients = torch.randn_like(x), []
    for module, weights in (
        (theirs, [level.codebook.weight for level in theirs.quantizers]),
        (ours, [level.book.vectors for level in ours.levels]),
    ):
        out = module(x)
        loss = out[2] if module is ours else 0.25 * out[3].mean() + out[4].mean()
        gradients.append(torch.autograd.grad((out[0] * cotangent).sum() + loss, (x, *weights)))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b.view_as(a), a, rtol=1e-4, atol=1e-5)


def test_weights_that_are_normalized_answer_alike():
    theirs, x = dac(), torch.randn(2, WIDTH, 50)
    for level in theirs.quantizers:
        for projection in (level.in_proj, level.out_proj):
            parametrizations.weight_norm(projection)
            projection.parametrizations.weight.original1.data *= torch.rand(()) * 3
    # Descript's code names them as torch did before
    old = {"original0": "weight_g", "original1": "weight_v"}
    state = {}
    for name, tensor in theirs.state_dict().items():
        *at, last = name.replace("parametrizations.weight.", "").split(".")
        state[".".join([*at, old.get(last, last)])] = tensor
    ours = to_fastvq("dac", state).build().eval()
    assert_alike(theirs, ours, x)
    back = from_fastvq("dac", ours)
    assert back.keys() == state.keys()
    assert all(back[name].shape == tensor.shape for name, tensor in state.items())
    assert_alike(theirs, to_fastvq("dac", back).build().eval(), x)
    plain = dac()
    plain.load_state_dict(from_fastvq("dac.transformers", ours), strict=True)
    assert torch.equal(plain(x)[1], theirs(x)[1])


def test_codes_on_the_sphere_are_written_as_such():
    torch.manual_seed(0)
    ours, x = ProjectedResidualVQ(WIDTH, K, Q, codebook_dim=D, channel_dim=1), torch.randn(2, 12, 9)
    ours(x)
    theirs = dac()
    theirs.load_state_dict(from_fastvq("dac.transformers", ours.eval()), strict=True)
    assert torch.equal(theirs(x)[1], ours(x).indices.movedim(-1, 1))
    testing.assert_within(ours(x).quantized, theirs(x)[0].double(), 1e-5)


def test_what_has_no_place_is_named():
    plain = ProjectedResidualVQ(WIDTH, K, Q, codebook_dim=D, metric="euclidean")
    with pytest.raises(ValueError, match="dac searches by direction, got 'euclidean'"):
        from_fastvq("dac", plain)
    state, name = dac().state_dict(), "quantizers.1.codebook.weight"
    with pytest.raises(ValueError, match=r"levels must agree in .* got \[\(31, 4, 12\), \(32, 4, "):
        to_fastvq("dac.transformers", state | {name: torch.randn(31, D)})
    with pytest.raises(ValueError, match="project_in must lead to the 5 channels of the codes"):
        to_fastvq("dac.transformers", state | {name: torch.randn(K, 5)})
    square = {n: torch.randn(D, D, 1) if n.endswith("j.weight") else t for n, t in state.items()}
    with pytest.raises(ValueError, match="codebook_dim must not be dim, got 4 for both in dac"):
        to_fastvq("dac.transformers", square)
