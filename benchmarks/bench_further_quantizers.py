# SPDX-License-Identifier: Apache-2.0
"""The training step and eval call of the quantizers beside the main ones, against their peers.

Where there is no peer the rival is the plain form: all N x K probabilities in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
import vector_quantize_pytorch as peer
from torch import Tensor, nn
from torch.nn import functional

import fastvq
from fastvq import testing

ROUNDS = 5
N, DIM = 8192, 64


class PlainIBQ(nn.Module):
    """Softmax, one-hot and their products as the method is written down."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.codebook = nn.Parameter(codebook.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        soft = torch.softmax(x @ self.codebook.t(), dim=-1)
        indices = soft.argmax(-1)
        hard = functional.one_hot(indices, len(self.codebook)).to(x.dtype)
        quantized = (hard + soft - soft.detach()) @ self.codebook
        code = hard @ self.codebook
        loss = (x - quantized).square().mean() + (x - code.detach()).square().mean()
        return quantized, indices, loss + 0.25 * (x.detach() - code).square().mean()


class Pair(NamedTuple):
    """Two quantizers of one meaning, holding the same weights, and how codes are compared."""

    ours: nn.Module
    theirs: nn.Module
    rival: str


def residual_fsq() -> Pair:
    ours = fastvq.ResidualFSQ([8, 5, 5, 5], 4, DIM)
    theirs = peer.ResidualFSQ(levels=[8, 5, 5, 5], num_quantizers=4, dim=DIM)
    ours.load_state_dict(theirs.state_dict())
    return Pair(ours, theirs, "lucidrains ResidualFSQ")


def residual_lfq() -> Pair:
    # without projections: the peer does not bound what it quantizes
    ours = fastvq.ResidualLFQ(2**12, 4)
    theirs = peer.ResidualLFQ(dim=12, codebook_size=2**12, num_quantizers=4)
    return Pair(ours, theirs, "lucidrains ResidualLFQ")


def residual_simvq() -> Pair:
    ours = fastvq.ResidualSimVQ(DIM, 1024, 4)
    theirs = peer.ResidualSimVQ(dim=DIM, codebook_size=1024, num_quantizers=4, rotation_trick=False)
    for level, layer in enumerate(theirs.layers):
        ours.frozen[level].copy_(layer.frozen_codebook)
        ours.maps.data[level].copy_(layer.code_transform.weight)
    return Pair(ours, theirs, "lucidrains ResidualSimVQ")


def ibq() -> Pair:
    ours = fastvq.IBQ(DIM, 8192, entropy_weight=0.0)
    return Pair(ours, PlainIBQ(ours.codebook.detach()), "plain softmax and one-hot")


PAIRS: dict[str, tuple[Callable[[], Pair], int]] = {
    "ResidualFSQ": (residual_fsq, DIM),
    "ResidualLFQ": (residual_lfq, 12),
    "ResidualSimVQ": (residual_simvq, DIM),
    "IBQ": (ibq, DIM),
}


def refuse_wrong_answers(pair: Pair, x: Tensor, bounded: Tensor) -> None:
    """The same codes, but for a near tie in a row of a hundred."""
    actual = pair.ours.eval()(x[:, :500])[1]
    expected = pair.theirs.eval()(bounded[:, :500])[1]
    share = (actual == expected).double().mean().item()
    assert share >= 0.99, f"only {share:.2%} of the codes are the rival's"


@pytest.mark.parametrize("kind", PAIRS)
@pytest.mark.parametrize("side", ["fastvq", "rival"])
@pytest.mark.parametrize("mode", ["training step", "eval"])
def test_quantizer(row, kind, side, mode):
    make, dim = PAIRS[kind]
    pair = make()
    x, _ = testing.gaussian(N, 1, dim)
    x = x.unsqueeze(0)
    refuse_wrong_answers(pair, x, 2 * torch.tanh(x / 2) if kind == "ResidualLFQ" else x)
    quantizer = pair.ours if side == "fastvq" else pair.theirs
    quantizer.train(mode == "training step")
    x.requires_grad_(mode == "training step")
    cotangent = torch.randn_like(x)

    def step() -> None:
        quantized, _, *losses = quantizer(x)
        ((quantized * cotangent).sum() + sum(loss.sum() for loss in losses)).backward()
        x.grad = None

    def call() -> object:
        with torch.no_grad():
            return quantizer(x)

    contender = f"fastvq {kind}" if side == "fastvq" else pair.rival
    run = step if mode == "training step" else call
    row(f"{kind} {mode}, N={N} D={dim}", contender, run, rounds=ROUNDS)


# without a peer of the same meaning: their cost beside that of the nearest relative
ALONE = {
    "GumbelVQ K=8192": lambda: (fastvq.GumbelVQ(DIM, 8192), (1, N, DIM)),
    "MultiScaleVQ K=4096": lambda: (
        fastvq.MultiScaleVQ(32, 4096, [1, 2, 3, 4, 5, 6, 8, 10, 13, 16], channel_dim=1),
        (8, 32, 16, 16),
    ),
    "QINCo K=256 Q=4": lambda: (fastvq.QINCo(32, 256, 4, blocks=2, hidden=64), (1, 512, 32)),
}


@pytest.mark.parametrize("kind", ALONE)
def test_alone(row, kind):
    quantizer, shape = ALONE[kind]()
    x = torch.randn(*shape).requires_grad_()

    def step() -> None:
        quantized, _, loss = quantizer(x)
        (quantized.sum() + loss).backward()
        x.grad = None

    row(f"{kind} training step, {list(shape)}", f"fastvq {kind}", step, rounds=ROUNDS)
