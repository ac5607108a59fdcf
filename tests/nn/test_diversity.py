"""``Diversity``: its formula, the peer's, its gradients, and its place in a quantizer's loss."""

import pytest
import torch

from fastvq import (
    Diversity,
    Given,
    Gradient,
    Orthogonality,
    ProjectedResidualVQ,
    ResidualVQ,
    VectorQuantizer,
)


def distances(x, codes, metric):
    """``[..., K]`` of x ``[..., D]``, in float64."""
    x, codes = x.double(), codes.double()
    if metric == "euclidean":
        return (x.unsqueeze(-2) - codes).square().sum(-1)
    if metric == "dot":
        return -x @ codes.mT
    unit, codes = (v / v.norm(dim=-1, keepdim=True) for v in (x, codes))
    return 1 - unit @ codes.mT


def by_definition(x, codes, metric="euclidean", beta=1.0):
    mean = torch.softmax(-beta * distances(x, codes, metric), -1).flatten(0, -2).mean(0)
    return (mean * mean.log()).sum()


def quantizer(codes, *regularizers, kind=VectorQuantizer, **options):
    """One whose loss is that of the regularizers alone."""
    learning = Gradient(0.0, regularizers)
    sizes = codes.shape[-1], codes.shape[-2], *codes.shape[:-2]
    options |= {"start": Given(codes), "learning": learning, "revival": None}
    return kind(*sizes, commitment_weight=0.0, **options)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "angular", "dot"])
def test_is_its_formula(metric):
    codes, x = torch.randn(12, 4), torch.randn(3, 20, 4, requires_grad=True)
    vq = quantizer(codes, Diversity(0.5, 2.0), metric=metric)
    loss = vq(x).loss
    wide = x.detach().double().requires_grad_(), codes.double().requires_grad_()
    expected = 0.5 * by_definition(*wide, metric, 2.0)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = torch.autograd.grad(loss, (x, vq.book.vectors))
    for actual, wanted in zip(gradients, torch.autograd.grad(expected, wide), strict=True):
        if metric == "cosine" and actual.ndim == 3 and actual.shape[0] == 1:
            # the codes start on the sphere, where the gradient is per their length there
            wanted = wanted * codes.double().norm(dim=-1, keepdim=True)
        torch.testing.assert_close(actual.double().view_as(wanted), wanted, rtol=1e-4, atol=1e-7)


def test_by_hand():
    codes = torch.tensor([[-3.0], [3.0]])
    spread, narrow = torch.tensor([[-3.0], [3.0]]), torch.tensor([[3.0], [3.0]])
    vq = quantizer(codes, Diversity(1.0, 1.0))
    assert vq(spread).loss.item() == pytest.approx(-torch.tensor(2.0).log().item())
    assert vq(narrow).loss.item() == pytest.approx(0.0, abs=1e-6)


def test_is_the_peers():
    peer = pytest.importorskip("vector_quantize_pytorch")
    theirs = peer.VectorQuantize(
        dim=4, codebook_size=12, use_cosine_sim=True, rotation_trick=False,
        codebook_diversity_loss_weight=1.0, codebook_diversity_temperature=3.0,
    )  # fmt: skip
    codes = theirs.codebook.clone()
    ours = quantizer(codes, Diversity(1.0, 3.0), metric="cosine")
    x = torch.randn(50, 4, requires_grad=True)
    # else its moving average writes the codes before its gradient reads them
    *_, parts = theirs(x, freeze_codebook=True, return_loss_breakdown=True)
    loss = ours(x).loss
    assert loss.item() == pytest.approx(parts.codebook_diversity.item(), rel=1e-5)
    gradients = (torch.autograd.grad(each, x)[0] for each in (loss, parts.codebook_diversity))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    # of sequences it takes the entropy at each position
    x = torch.randn(30, 5, 4)
    *_, parts = theirs(x, freeze_codebook=True, return_loss_breakdown=True)
    each = torch.stack([ours(position).loss for position in x.unbind(1)])
    assert each.mean().item() == pytest.approx(parts.codebook_diversity.item(), rel=1e-5)


def test_of_levels_and_heads():
    x, mask = torch.randn(3, 20, 4), torch.rand(3, 20) > 0.3
    codes = torch.randn(2, 12, 4)
    rvq = quantizer(codes, Diversity(1.0, 2.0), kind=ResidualVQ)
    _, indices, loss = rvq(x, mask)
    rest = x - codes[0][indices[..., 0].clamp_min(0)]
    parts = [by_definition(r[mask], c, beta=2.0) for r, c in zip((x, rest), codes, strict=True)]
    assert loss.item() == pytest.approx(sum(parts).item() / 2, rel=1e-5)
    assert rvq(x, mask, levels=1).loss.item() == pytest.approx(parts[0].item(), rel=1e-5)
    loss.backward()
    assert (rvq.book.vectors.grad.abs().amax(-1) > 0).all(), "unused codes move as well"
    heads = VectorQuantizer(
        8, 12, heads=2, start=Given(codes), commitment_weight=0.0,
        learning=Gradient(0.0, (Diversity(1.0, 2.0),)),
    )  # fmt: skip
    x = torch.randn(40, 8)
    parts = [by_definition(p, c, beta=2.0) for p, c in zip(x.split(4, -1), codes, strict=True)]
    assert heads(x).loss.item() == pytest.approx(sum(parts).item() / 2, rel=1e-5)


def test_padding_and_bad_rows_do_not_count():
    vq = quantizer(torch.randn(12, 4), Diversity(1.0, 2.0))
    x = torch.randn(4, 5, 4)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 2:] = False
    padded = torch.where(mask.unsqueeze(-1), x, torch.nan).requires_grad_()
    loss = vq(padded, mask).loss
    assert loss.item() == pytest.approx(by_definition(x[mask], vq.codebook, beta=2.0).item(), 1e-5)
    loss.backward()
    assert padded.grad.isfinite().all()
    # a bad row that is not padding shows in the loss, and moves no code
    mask[2, 0] = False
    wide = vq.codebook.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(by_definition(x[mask], wide, beta=2.0), wide)
    mask[2, 0], bad = True, x.clone()
    bad[2, 0, 1] = torch.nan
    loss = vq(bad, mask).loss
    assert loss.isnan()
    (grad,) = torch.autograd.grad(loss, vq.book.vectors)
    torch.testing.assert_close(grad[0].double(), wanted, rtol=1e-4, atol=1e-7)
    assert vq(torch.empty(0, 4)).loss == 0


def test_beside_others_and_in_every_level():
    codes, x = torch.randn(12, 4), torch.randn(50, 4)
    one, two = Orthogonality(2.0), Diversity(0.5, 2.0)
    both, *each = (quantizer(codes, *terms)(x).loss for terms in ((one, two), (one,), (two,)))
    torch.testing.assert_close(both, sum(each))
    learning = Gradient(0.0, (two,))
    projected = ProjectedResidualVQ(8, 12, 2, learning=learning, commitment_weight=0.0)
    x = torch.randn(50, 8)
    projected(x)
    first = projected.levels[0](x)
    second = projected.levels[1](x - first.quantized)
    torch.testing.assert_close(projected(x).loss, first.loss + second.loss)


def test_brings_codes_into_use():
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    # a codebook of which all vectors take one code
    codes = torch.cat([torch.zeros(1, 2), 9 + 0.5 * torch.randn(7, 2)])
    vq = quantizer(codes, Diversity(1.0, 0.2))
    optimizer = torch.optim.Adam(vq.parameters(), 0.1)
    before = vq(x)
    for _ in range(100):
        optimizer.zero_grad()
        vq(x).loss.backward()
        optimizer.step()
    after = vq(x)
    # the least is minus the logarithm of eight codes, 2.079
    assert before.loss > -0.1
    assert after.loss < -2.07
    # of the soft assignment, which more of the chosen codes follow
    assert len(before.indices.unique()) == 1 < len(after.indices.unique())


def test_compiles_whole():
    torch.compiler.reset()
    vq, x = quantizer(torch.randn(12, 4), Diversity()), torch.randn(50, 4, requires_grad=True)
    compiled = torch.compile(vq, backend="eager", fullgraph=True)
    loss, expected = compiled(x).loss, vq(x).loss
    torch.testing.assert_close(loss, expected)
    gradients = (torch.autograd.grad(each, (x, vq.book.vectors)) for each in (loss, expected))
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_bad_arguments():
    with pytest.raises(ValueError, match="weight must be in"):
        Diversity(weight=-1.0)
    with pytest.raises(ValueError, match="inverse_temperature must be above 0, got 0"):
        Diversity(inverse_temperature=0)
    with pytest.raises(ValueError, match="inverse_temperature must be in"):
        Diversity(inverse_temperature=float("inf"))
