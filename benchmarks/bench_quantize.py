# SPDX-License-Identifier: Apache-2.0
"""The lookup with both losses, forward and backward, against the usual lines of torch; and the
other estimators of its gradient against the peer's.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import fastvq
from fastvq import testing

SHAPES = ((65536, 512, 64), (65536, 1024, 128), (16384, 8192, 256))
BACKENDS = [s.name for s in fastvq.backends() if s.available and s.name != "reference"]


def plain(x: torch.Tensor, codebook: torch.Tensor, indices: torch.Tensor):
    """As most models write it."""
    codes = functional.embedding(indices, codebook)
    commitment = functional.mse_loss(x, codes.detach())
    learning = functional.mse_loss(codes, x.detach())
    return x + (codes - x).detach(), commitment, learning


CONTENDERS = {**{f"fastvq {name}": name for name in BACKENDS}, "torch, as usually written": None}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("contender", CONTENDERS)
def test_forward_and_backward(row, shape, contender):
    n, k, d = shape
    x, codebook = testing.gaussian(*shape)
    indices = torch.randint(k, (n,))
    x.requires_grad_(), codebook.requires_grad_()
    cotangents = torch.randn_like(x), torch.tensor(0.25), torch.tensor(1.0)
    backend = CONTENDERS[contender]
    function = plain if backend is None else fastvq.ops.quantize

    def run():
        out = function(x, codebook, indices)
        return torch.autograd.grad(out, (x, codebook), cotangents)

    with fastvq.use_backend(backend or "auto"):
        expected = torch.autograd.grad(plain(x, codebook, indices), (x, codebook), cotangents)
        for actual, wanted in zip(run(), expected, strict=True):
            testing.assert_within(actual, wanted.double(), 1e-5 * wanted.abs().max())
        # forward: read x, write codes; backward: read the gradient, x, x again, write a gradient
        row(f"N={n} K={k} D={d}", contender, run, bytes_moved=6.0 * 4 * n * d)


def peers_rotation(x: torch.Tensor, codebook: torch.Tensor, indices: torch.Tensor):
    """The peer's rotation of the vectors, with the losses as most models write them."""
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    codes = functional.embedding(indices, codebook)
    commitment = functional.mse_loss(x, codes.detach())
    learning = functional.mse_loss(codes, x.detach())
    return rotate_to(x, codes.detach()), commitment, learning


def peers_diveq(x: torch.Tensor, codebook: torch.Tensor, indices: torch.Tensor):
    """The peer's reparametrization without noise, and the same losses."""
    from vector_quantize_pytorch.vector_quantize_pytorch import directional_reparam

    codes = functional.embedding(indices, codebook)
    commitment = functional.mse_loss(x, codes.detach())
    learning = functional.mse_loss(codes, x.detach())
    return directional_reparam(x, codes, 0.0), commitment, learning


PEERS = {"rotation": peers_rotation, "diveq": peers_diveq}
ESTIMATORS = [*(f"fastvq {name}" for name in BACKENDS), "lucidrains"]


@pytest.mark.parametrize("gradient", PEERS)
@pytest.mark.parametrize("contender", ESTIMATORS)
def test_estimators(row, contender, gradient):
    n, k, d = SHAPES[0]
    x, codebook = testing.gaussian(n, k, d)
    indices = torch.randint(k, (n,))
    x.requires_grad_(), codebook.requires_grad_()
    cotangents = torch.randn_like(x), torch.tensor(0.25), torch.tensor(1.0)

    def run():
        if contender == "lucidrains":
            out = PEERS[gradient](x, codebook, indices)
        else:
            out = fastvq.ops.quantize(x, codebook, indices, gradient=gradient)
        return torch.autograd.grad(out, (x, codebook), cotangents)

    backend = "auto" if contender == "lucidrains" else contender.removeprefix("fastvq ")
    with fastvq.use_backend(backend):
        expected = torch.autograd.grad(
            PEERS[gradient](x, codebook, indices), (x, codebook), cotangents
        )
        for actual, wanted in zip(run(), expected, strict=True):
            testing.assert_within(actual, wanted.double(), 1e-5 * wanted.abs().max())
        row(f"{gradient}, N={n} K={k} D={d}", contender, run)
