"""The first levels alone, of every residual quantizer: what they answer and what they learn."""

import copy

import pytest
import torch

from fastvq import (
    EMA,
    Gradient,
    GroupedResidualVQ,
    ProjectedResidualVQ,
    QINCo,
    ResidualFSQ,
    ResidualLFQ,
    ResidualSimVQ,
    ResidualVQ,
)
from fastvq.nn.codebook import Codebook

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
# parameters with a part for each level
OF_LEVELS = ("book.vectors", "maps", "mix", "bias", "up", "down")


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


def state(quantizer):
    """Codes and use of every level, group after group; of a shared codebook those of one."""
    books = [module for module in quantizer.modules() if isinstance(module, Codebook)]
    names = ("vectors", "cluster_size") if books else ()
    return [torch.cat([getattr(book, name).detach() for book in books]) for name in names]


def of_level(tensors, level):
    return [tensor[level::LEVELS] for tensor in tensors]


def test_in_training_they_learn_as_beside_the_others(quantizer):
    whole, before = copy.deepcopy(quantizer), state(quantizer)
    x, mask = torch.randn(4, 50, DIM), torch.rand(4, 50) > 0.3
    torch.manual_seed(1)
    indices = quantizer(x, mask, levels=2).indices
    torch.manual_seed(1)
    assert torch.equal(indices, whole(x, mask).indices[..., :2])
    after = state(quantizer)
    if not getattr(quantizer, "shared_codebook", False):
        for level in (0, 1):
            torch.testing.assert_close(
                of_level(after, level), of_level(state(whole), level), rtol=0, atol=0
            )
    torch.testing.assert_close(of_level(after, 2), of_level(before, 2), rtol=0, atol=0)


def test_gradients_are_of_them_alone(quantizer):
    x, mask = torch.randn(4, 50, DIM, requires_grad=True), torch.rand(4, 50) > 0.3
    quantized, indices, loss = quantizer(x, mask, levels=2)
    assert indices.shape[-1] == 2
    assert (indices[~mask] == -1).all()
    assert not quantized[~mask].any()
    (quantized.square().sum() + loss).backward()
    assert (x.grad[mask].abs().amax(-1) > 0).all()
    for name, parameter in quantizer.named_parameters():
        if name.startswith("levels.2."):
            assert parameter.grad is None, name
        elif name in OF_LEVELS:
            assert parameter.grad[0].any(), name
            assert not parameter.grad[-1].any(), name
        else:
            assert parameter.grad.any(), name


@pytest.mark.parametrize("every", [1, 2])
def test_what_is_left_out_for_long_is_not_dead(every):
    vq = ResidualVQ(DIM, 20, LEVELS, learning=EMA(decay=0.8, every=every))
    for _ in range(every):
        vq(torch.randn(15, DIM))
    codes, size = (tensor.clone() for tensor in (vq.codebook[2], vq.book.cluster_size[2]))
    for _ in range(100):
        vq(torch.randn(15, DIM), levels=2)
    assert torch.equal(vq.codebook[2], codes)
    assert torch.equal(vq.book.cluster_size[2], size)
    taken = [vq(torch.randn(15, DIM)).indices[:, 2] for _ in range(every)]
    idle = torch.ones(20, dtype=torch.bool)
    idle[torch.cat(taken)] = False
    assert idle.any()
    assert torch.equal(vq.codebook[2][idle], codes[idle])


def test_dropout_that_leaves_a_level_out_forgets_nothing():
    vq, x = ResidualVQ(DIM, 20, LEVELS, dropout=0.99), torch.randn(1, 50, DIM)
    lacking = 0
    for _ in range(20):
        before = vq.book.cluster_size.clone()
        left_out = (vq(x).indices < 0).flatten(0, 1).all(0)  # [Q]
        assert torch.equal((vq.book.cluster_size == before).all(-1), left_out)
        lacking += int(left_out.sum())
    assert lacking > 5


def test_dropout_draws_from_them():
    vq = ResidualVQ(DIM, 20, 4, dropout=0.9)
    x = torch.randn(200, 2, DIM)
    vq(x)
    taken = (vq(x, levels=2).indices >= 0).sum(-1)
    assert taken.unique().tolist() == [1, 2]


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
