"""``RandomProjectionQuantizer``: its definition in float64, its peer, and that it never changes."""

import copy

import pytest
import torch
import vector_quantize_pytorch as peer

import fastvq
from fastvq import RandomProjectionQuantizer


def by_definition(labels, x):
    """Indices ``[N, H]``, in float64 and by forming everything."""
    x = x.double()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    latents = torch.einsum("nd,hde->nhe", x, labels.projections.double())
    latents = latents / latents.norm(dim=-1, keepdim=True)
    codes = labels.codebooks.double()
    codes = codes / codes.norm(dim=-1, keepdim=True)
    apart = (latents.unsqueeze(2) - codes).norm(dim=-1)  # [N, H, K]
    return apart.argmin(-1)


def test_is_the_definition(backend):
    labels = RandomProjectionQuantizer(20, 64, 6, num_codebooks=3)
    x = torch.randn(200, 20) * 5 + 3
    indices = labels(x)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, by_definition(labels, x))


def test_is_the_peers():
    # with one codebook: with several a peer puts a linear layer of its own before the codebooks,
    # not frozen, and searches in H times the channels
    theirs = peer.RandomProjectionQuantizer(dim=20, codebook_size=64, codebook_dim=6)
    ours = RandomProjectionQuantizer(20, 64, 6)
    ours.projections.copy_(theirs.rand_projs)
    ours.codebooks.copy_(theirs.vq._codebook.embed)
    x = torch.randn(4, 50, 20)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("leading", [(), (9,), (2, 3, 4), (0, 3)], ids=str)
def test_shapes(leading):
    x = torch.randn(*leading, 20)
    assert RandomProjectionQuantizer(20, 64, 6)(x).shape == leading
    several = RandomProjectionQuantizer(20, 64, 6, num_codebooks=2)
    assert several(x).shape == (*leading, 2)
    assert torch.equal(several(x.reshape(-1, 20)).reshape(*leading, 2), several(x))


def test_codes_have_unit_length_and_are_all_used():
    labels = RandomProjectionQuantizer(80, 256, 16)
    torch.testing.assert_close(labels.codebooks.norm(dim=-1), torch.ones(1, 256))
    assert labels(torch.randn(20_000, 80)).unique().numel() > 250


def test_length_of_a_vector_does_not_matter():
    labels, x = RandomProjectionQuantizer(20, 64, 6), torch.randn(100, 20)
    assert torch.equal(labels(x * 1000), labels(x))


def test_the_seed_decides():
    tables = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        tables.append(RandomProjectionQuantizer(20, 64, 6).state_dict())
    for name in ("projections", "codebooks"):
        assert torch.equal(tables[0][name], tables[1][name])
        assert not torch.equal(tables[0][name], tables[2][name])


def test_nothing_learns_and_all_is_saved():
    labels, x = RandomProjectionQuantizer(20, 64, 6, num_codebooks=2), torch.randn(100, 20)
    before = copy.deepcopy(labels.state_dict())
    assert before.keys() == {"projections", "codebooks"}
    assert not list(labels.parameters())
    expected = labels(x.requires_grad_())
    assert not expected.requires_grad
    assert torch.equal(labels.eval()(x), expected)
    for name, value in labels.state_dict().items():
        assert torch.equal(value, before[name])
    other = RandomProjectionQuantizer(20, 64, 6, num_codebooks=2)
    assert not torch.equal(other(x), expected)
    other.load_state_dict(before)
    assert torch.equal(other(x), expected)


def test_dtypes_and_autocast():
    labels, x = RandomProjectionQuantizer(20, 64, 6), torch.randn(500, 20)
    expected = labels(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(labels(x), expected)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        half = copy.deepcopy(labels).to(dtype)
        assert torch.equal(half(x.to(dtype)), by_definition(half, x.to(dtype)).squeeze(-1))
    assert torch.equal(labels(x.bfloat16()), labels(x.bfloat16().float()))


def test_a_bad_row_gets_index_zero():
    labels, x = RandomProjectionQuantizer(20, 64, 6), torch.randn(5, 20)
    expected = labels(x)
    x[1, 3], x[2, 0] = torch.nan, torch.inf
    indices = labels(x)
    assert indices[1] == indices[2] == 0
    assert torch.equal(indices[[0, 3, 4]], expected[[0, 3, 4]])


def test_compiles_and_exports():
    torch.compiler.reset()
    labels, x = RandomProjectionQuantizer(20, 64, 6, num_codebooks=2), torch.randn(4, 25, 20)
    expected = labels(x)
    assert torch.equal(torch.compile(labels, fullgraph=True)(x), expected)
    assert torch.equal(torch.export.export(labels.eval(), (x,)).module()(x), expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"dim": 0}, ValueError, "dim must be at least 1, got 0"),
        ({"codebook_size": 2.5}, TypeError, "codebook_size must be an int, got float"),
        ({"codebook_dim": 0}, ValueError, "codebook_dim must be at least 1"),
        ({"num_codebooks": 0}, ValueError, "num_codebooks must be at least 1"),
        ({"norm": False}, TypeError, "norm"),
    ],
)
def test_bad_arguments(change, error, text):
    with pytest.raises(error, match=text):
        RandomProjectionQuantizer(**{"dim": 8, "codebook_size": 16, "codebook_dim": 4, **change})


def test_bad_input_and_name():
    labels = RandomProjectionQuantizer(20, 64, 6)
    with pytest.raises(ValueError, match=r"dim = 20 channels.*got \[3, 19\]"):
        labels(torch.randn(3, 19))
    with pytest.raises(TypeError, match="got int64"):
        labels(torch.ones(3, 20, dtype=torch.int64))
    assert "dim=20" in repr(labels)
    assert "RandomProjectionQuantizer" in fastvq.__all__
