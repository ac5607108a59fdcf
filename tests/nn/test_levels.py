"""The first levels alone, of every residual quantizer: what they answer and what they learn."""

import copy

import pytest
import torch

from fastvq import (
    Gradient,
    GroupedResidualVQ,
    ProjectedResidualVQ,
    QINCo,
    ResidualFSQ,
    ResidualLFQ,
    ResidualSimVQ,
    ResidualVQ,
)

DIM, LEVELS = 8, 3
MAKERS = {
    "residual": lambda: ResidualVQ(DIM, 20, LEVELS, codebook_dim=6),
    "shared": lambda: ResidualVQ(DIM, 20, LEVELS, shared_codebook=True),
    "gradient": lambda: ResidualVQ(DIM, 20, LEVELS, learning=Gradient()),
    "grouped": lambda: GroupedResidualVQ(DIM, 20, LEVELS, 2),
    "projected": lambda: ProjectedResidualVQ(DIM, 20, LEVELS, codebook_dim=4),
    "simvq": lambda: ResidualSimVQ(DIM, 20, LEVELS),
    "fsq": lambda: ResidualFSQ([5, 3], LEVELS, DIM),
    "lfq": lambda: ResidualLFQ(16, LEVELS, DIM),
    "qinco": lambda: QINCo(DIM, 20, LEVELS, blocks=1, hidden=8),
}


@pytest.fixture(params=MAKERS)
def quantizer(request):
    torch.manual_seed(0)
    made = MAKERS[request.param]()
    for _ in range(2):
        made(torch.randn(4, 50, DIM))
    return made


def test_are_those_of_encode_and_decode(quantizer):
    quantizer.eval()
    x = torch.randn(4, 50, DIM)
    whole = quantizer(x)
    losses = []
    for levels in range(1, LEVELS + 1):
        quantized, indices, loss = quantizer(x, levels=levels)
        assert torch.equal(indices, whole.indices[..., :levels])
        assert torch.equal(indices, quantizer.encode(x, levels=levels))
        assert torch.equal(quantized, quantizer.decode(indices))
        losses.append(loss.item())
    if losses[0] > 0:  # FSQ has none, and LFQ's is an entropy below 0
        assert losses == sorted(set(losses)), "every level adds a loss of its own"
    for a, b in zip(whole, quantizer(x, levels=LEVELS), strict=True):
        assert torch.equal(a, b)


def test_later_levels_keep_their_codes_in_training(quantizer):
    before = copy.deepcopy(quantizer)
    x, mask = torch.randn(4, 50, DIM, requires_grad=True), torch.rand(4, 50) > 0.3
    quantized, indices, loss = quantizer(x, mask, levels=2)
    assert indices.shape[-1] == 2
    assert (indices[~mask] == -1).all()
    assert not quantized[~mask].any()
    (quantized.sum() + loss).backward()
    assert (x.grad[mask].abs().amax(-1) > 0).all()
    if hasattr(quantizer, "codebook") and not getattr(quantizer, "shared_codebook", False):
        last = quantizer.codebook.movedim(-3, 0)[-1], before.codebook.movedim(-3, 0)[-1]
        assert torch.equal(*last)
    # and the first ones learn as they do beside the others
    torch.manual_seed(1)
    expected = before(x, mask)
    torch.testing.assert_close(indices, expected.indices[..., :2])


def test_dropout_draws_from_them():
    vq = ResidualVQ(DIM, 20, 4, dropout=0.9)
    x = torch.randn(200, 2, DIM)
    vq(x)
    taken = (vq(x, levels=2).indices >= 0).sum(-1)
    assert taken.unique().tolist() == [1, 2]


def test_codes_learn_as_with_all_levels():
    first, other = (MAKERS["residual"]() for _ in range(2))
    x = torch.randn(4, 50, DIM)
    first(x)
    other.load_state_dict(first.state_dict())
    x = torch.randn(4, 50, DIM)
    first(x)
    other(x, levels=2)
    assert torch.equal(first.codebook[:2], other.codebook[:2])
    assert not torch.equal(first.codebook[2], other.codebook[2])
    assert torch.equal(first.book.cluster_size[:2], other.book.cluster_size[:2])


def test_compile_whole():
    torch.compiler.reset()
    vq, x = MAKERS["residual"](), torch.randn(4, 50, DIM)
    vq(x)
    compiled = torch.compile(vq.eval(), backend="eager", fullgraph=True)
    for levels in (1, 2):
        assert torch.equal(compiled(x, levels=levels).indices, vq.encode(x, levels=levels))


@pytest.mark.parametrize("levels", [0, LEVELS + 1, -1])
def test_others_are_refused(quantizer, levels):
    for call in (quantizer, quantizer.encode):
        with pytest.raises(ValueError, match=rf"levels must be in \[1, 3\], got {levels}"):
            call(torch.randn(2, DIM), levels=levels)
    with pytest.raises(TypeError, match="levels must be an int, got float"):
        quantizer(torch.randn(2, DIM), levels=2.0)
