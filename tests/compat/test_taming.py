"""VectorQuantizer2 of taming-transformers by its structure, and diffusers' quantizer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastvq


class VectorQuantizer2(nn.Module):
    """A copy such as projects carry: taming's interface and meaning, in other words."""

    def __init__(self, n_e, e_dim, beta, legacy=True, sane_index_shape=False):
        super().__init__()
        self.n_e, self.e_dim, self.beta, self.legacy = n_e, e_dim, beta, legacy
        self.remap, self.sane_index_shape = None, sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)

    def forward(self, z, temp=None, rescale_logits=False, return_logits=False):
        rows = self.prepared(z.permute(0, 2, 3, 1))
        flat, codes = rows.flatten(0, 2), self.embedding.weight
        squares = flat.pow(2).sum(1, keepdim=True) + codes.pow(2).sum(1)
        index = (squares - 2 * flat @ codes.t()).argmin(1)
        out = self.embedding(index).view_as(rows)
        pulls = [(out.detach() - rows).pow(2).mean(), (out - rows.detach()).pow(2).mean()]
        loss = self.weighted(*(pulls if self.legacy else reversed(pulls)))
        out = (rows + (out - rows).detach()).permute(0, 3, 1, 2).contiguous()
        if self.sane_index_shape:
            index = index.view(rows.shape[:3])
        return out, loss, (None, None, index)

    def prepared(self, rows):
        return rows

    def weighted(self, plain, scaled):
        return plain + self.beta * scaled


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("sane_index_shape", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_is_known_by_what_it_does(legacy, sane_index_shape, dtype):
    before = VectorQuantizer2(64, 8, 0.25, legacy, sane_index_shape)
    before.embedding.weight.data += 10  # far enough for 16 bits to pick wrong codes
    before.to(dtype)
    after = copy.deepcopy(before)
    state = torch.random.get_rng_state()
    (row,) = fastvq.accelerate(after).replaced
    assert row == ("", "VectorQuantizer2", "forward")
    assert isinstance(after, VectorQuantizer2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert after.embedding.weight.grad is None
    x = torch.randn(2, 8, 5, 6) + 10
    if dtype == torch.bfloat16:
        exact = torch.cdist(
            x.movedim(1, -1).flatten(0, 2).double(), after.embedding.weight.double()
        )
        assert torch.equal(after(x)[2][2].flatten(), exact.argmin(-1))
        return
    gradients = []
    results = []
    for module in (before, after):
        leaf = x.clone().requires_grad_()
        out, loss, (_, _, indices) = module(leaf)
        (out.square().sum() + loss).backward()
        results.append((out, loss, indices))
        gradients.append((leaf.grad, module.embedding.weight.grad))
    for a, b in zip((*results[0], *gradients[0]), (*results[1], *gradients[1]), strict=True):
        torch.testing.assert_close(b, a)
    with pytest.raises(ValueError, match="Gumbel"):
        after(x, temp=0.5)


class Normalized(VectorQuantizer2):
    def prepared(self, rows):
        return nn.functional.normalize(rows, dim=-1)


class OtherLoss(VectorQuantizer2):
    def weighted(self, plain, scaled):
        return super().weighted(plain, scaled) + self.embedding.weight.square().sum()


class OtherTerm(VectorQuantizer2):
    """The same value, another gradient."""

    def weighted(self, plain, scaled):
        return super().weighted(scaled, plain)


class Broken(VectorQuantizer2):
    def prepared(self, rows):
        raise RuntimeError("only in 3d")


class Counting(VectorQuantizer2):
    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("seen", torch.zeros(()))


class Bare(nn.Module):
    pass


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Normalized, "its codes are not those of taming's VectorQuantizer2"),
        (OtherLoss, "its losses are not those of taming's VectorQuantizer2"),
        (OtherTerm, "its gradients are not those of taming's VectorQuantizer2"),
        (Broken, "fails on a probe: only in 3d"),
        (Counting, "holds more, or other, state than its embedding"),
    ],
)
def test_a_changed_copy_is_left(kind, reason):
    # of the same name, as a project that changed the file has it
    module = kind(64, 8, 0.25)
    module.__class__ = type("VectorQuantizer2", (kind,), {})
    (row,) = fastvq.accelerate(module).left
    assert row == ("", "VectorQuantizer2", reason)


def test_a_namesake_is_left():
    module = Bare()
    module.__class__ = type("VectorQuantizer2", (Bare,), {})
    (row,) = fastvq.accelerate(module).left
    assert row.reason == "not built as taming's VectorQuantizer2"


@pytest.fixture
def quantizers(tmp_path):
    """diffusers' quantizer before and after."""
    from diffusers.models.autoencoders.vae import VectorQuantizer

    def make(**options):
        before = VectorQuantizer(64, 8, 0.25, **options)
        after = copy.deepcopy(before)
        assert len(fastvq.accelerate(after).replaced) == 1
        return before, after

    return make


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("sane_index_shape", [True, False])
@pytest.mark.parametrize("unknown_index", [None, "random", "extra", 3])
def test_diffusers_agrees(quantizers, tmp_path, legacy, sane_index_shape, unknown_index):
    import numpy as np

    options = {}
    if unknown_index is not None:
        np.save(tmp_path / "used.npy", np.arange(0, 64, 2))
        options = {"remap": tmp_path / "used.npy", "unknown_index": unknown_index}
    before, after = quantizers(legacy=legacy, sane_index_shape=sane_index_shape, **options)
    x = torch.randn(2, 8, 5, 6)
    results = []
    for module in (before, after):
        torch.manual_seed(1)
        leaf = x.clone().requires_grad_()
        out, loss, (perplexity, encodings, indices) = module(leaf)
        assert perplexity is encodings is None
        (out.square().sum() + loss).backward()
        results.append((out, loss, indices, leaf.grad, module.embedding.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(b, a)


def test_diffusers_takes_the_nearest_code(quantizers, assert_same_codes):
    before, after = quantizers()
    x = torch.randn(2, 8, 20, 20)
    theirs, ours = (module(x)[2][2] for module in (before, after))
    rows = x.movedim(1, -1).flatten(0, 2)
    assert_same_codes(rows, before.embedding.weight.detach(), theirs, ours)
