"""``Orthogonality``: its formula both ways, the peer's, and its place in a quantizer's loss."""

import pytest
import torch

from fastvq import EMA, Given, Gradient, Orthogonality, ResidualVQ, VectorQuantizer


def by_definition(codes):
    unit = codes.double() / codes.double().norm(dim=-1, keepdim=True)
    cosines = unit @ unit.mT - torch.eye(codes.shape[1], dtype=torch.float64)
    return (cosines.square().sum((-1, -2)) / codes.shape[1] ** 2).mean()


def orthogonality(codes):
    def seen():
        raise AssertionError("it is of the codes alone")

    return Orthogonality()(codes, seen)


@pytest.mark.parametrize("shape", [(1, 40, 6), (3, 40, 6), (2, 5, 30), (1, 7, 7)], ids=str)
def test_is_its_formula(shape):
    codes = torch.randn(shape, requires_grad=True)
    loss = orthogonality(codes)
    wide = codes.detach().double().requires_grad_()
    expected = by_definition(wide)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    (grad,) = torch.autograd.grad(loss, codes)
    (wanted,) = torch.autograd.grad(expected, wide)
    torch.testing.assert_close(grad.double(), wanted, rtol=1e-4, atol=1e-7)


def test_by_hand():
    assert orthogonality(torch.eye(3).unsqueeze(0)) == 0
    # two equal directions of two: cosines 1 off the diagonal, 2 / 4
    assert orthogonality(torch.tensor([[[2.0, 0.0], [5.0, 0.0]]])) == 0.5
    # four directions of the plane, opposite in pairs: 4 / 16
    cross = torch.tensor([[[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -3.0]]])
    assert orthogonality(cross) == 0.25


def test_is_the_peers():
    peer = pytest.importorskip("vector_quantize_pytorch.vector_quantize_pytorch")
    for shape in ((1, 40, 6), (2, 5, 30)):
        codes = torch.randn(shape)
        theirs = peer.orthogonal_loss_fn(codes).item()
        assert orthogonality(codes).item() == pytest.approx(theirs, rel=1e-4)


def test_no_k_by_k_memory():
    codes = torch.randn(1, 1 << 17, 8)  # K x K would be 64 GiB
    assert torch.isfinite(orthogonality(codes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_codes_and_autocast(dtype):
    codes = torch.randn(1, 3000, 4)
    expected = by_definition(codes.to(dtype)).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert orthogonality(codes.to(dtype)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["vq", "residual"])
def test_adds_to_the_loss_of_a_quantizer(kind):
    given = torch.randn(2, 12, 6) if kind == "residual" else torch.randn(12, 6)

    def make(*regularizers):
        learning = Gradient(regularizers=regularizers)
        if kind == "residual":
            return ResidualVQ(6, 12, 2, start=Given(given), learning=learning)
        return VectorQuantizer(6, 12, start=Given(given), learning=learning)

    x = torch.randn(50, 6)
    plain, paying = make()(x).loss, make(Orthogonality(3.0))
    loss = paying(x).loss
    expected = plain + 3.0 * orthogonality(given.view(-1, 12, 6))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    assert (paying.book.vectors.grad.abs().amax(-1) > 0).all(), "unused codes turn as well"


def test_compiles_whole():
    torch.compiler.reset()
    learning = Gradient(regularizers=(Orthogonality(),))
    quantizer = VectorQuantizer(6, 12, start=Given(torch.randn(12, 6)), learning=learning)
    x = torch.randn(50, 6)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x).loss, quantizer(x).loss)


def test_turns_codes_apart():
    close = torch.ones(6, 4) + 0.1 * torch.randn(6, 4)
    learning = Gradient(weight=0.0, regularizers=(Orthogonality(10.0),))
    quantizer = VectorQuantizer(4, 6, start=Given(close), learning=learning, commitment_weight=0.0)
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.05)
    before = quantizer(torch.zeros(1, 4)).loss.item()
    for _ in range(100):
        optimizer.zero_grad()
        quantizer(torch.zeros(1, 4)).loss.backward()
        optimizer.step()
    # six directions of four dimensions cannot do better than 36 / 4 - 6 of 36, times ten
    after = quantizer(torch.zeros(1, 4)).loss.item()
    assert before > 5
    assert after == pytest.approx(10 * 3 / 36, rel=0.02)


def test_bad_arguments():
    with pytest.raises(ValueError, match="weight must be in"):
        Orthogonality(weight=-1.0)
    with pytest.raises(TypeError, match=r"regularizers must be one of tuple\(...\)"):
        Gradient(regularizers=Orthogonality())
    with pytest.raises(TypeError, match=r"Orthogonality\(...\), Diversity\(...\), got 3"):
        Gradient(regularizers=(3,))
    with pytest.raises(TypeError, match="regularizers"):
        EMA(regularizers=(Orthogonality(),))
