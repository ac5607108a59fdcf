# SPDX-License-Identifier: Apache-2.0
"""A quantizer's training step (forward, backward, codebook update) and its eval call."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastvq
from benchmarks import peers
from fastvq import testing

HOST_ROWS = 16
# (N, K, D) of the vectors of one step; of the first, what a call costs before it computes anything
SHAPES = (
    (HOST_ROWS, 512, 64),
    (16384, 512, 64),
    (65536, 512, 64),
    (16384, 1024, 128),
    (4096, 8192, 256),
)
BACKENDS = [s.name for s in fastvq.backends() if s.available and s.name != "reference"]
CONTENDERS = [*(f"fastvq {name}" for name in BACKENDS), "lucidrains VectorQuantize"]
ROUNDS, HOST_ROUNDS = 5, 500


def build(contender: str, codebook: torch.Tensor) -> nn.Module:
    """The contender's quantizer, holding the given codes."""
    k, d = codebook.shape
    if contender.startswith("fastvq "):
        return fastvq.VectorQuantizer(d, k, start=fastvq.Given(codebook))
    quantizer = peers.lucidrains(d, k)
    quantizer._codebook.embed.copy_(codebook.unsqueeze(0))
    quantizer._codebook.embed_avg.copy_(codebook.unsqueeze(0))
    return quantizer


def refuse_wrong_answers(quantizer: nn.Module, x: torch.Tensor, codebook: torch.Tensor) -> None:
    quantized, indices, _ = quantizer.eval()(x[:500])
    wrong = testing.wrong_codes(x[:500], codebook, indices).double().mean()
    assert wrong <= 0.01, f"picks a wrong code on {wrong:.2%} of the rows"
    testing.assert_within(quantized, codebook[indices].double(), 1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("mode", ["training step", "eval"])
def test_quantizer(row, shape, contender, mode):
    n, k, d = shape
    x, codebook = testing.gaussian(*shape)
    quantizer = build(contender, codebook)
    refuse_wrong_answers(quantizer, x, codebook)
    quantizer.train(mode == "training step")
    x.requires_grad_(mode == "training step")
    cotangent = torch.randn_like(x)

    def step() -> None:
        quantized, _, loss = quantizer(x)
        torch.autograd.backward((quantized, loss), (cotangent, torch.ones_like(loss)))
        x.grad = None

    def call() -> object:
        with torch.no_grad():
            return quantizer(x)

    rounds = HOST_ROUNDS if n == HOST_ROWS else ROUNDS
    run = step if mode == "training step" else call
    group = f"{mode}, N={n} K={k} D={d}" + (", host overhead" if n == HOST_ROWS else "")
    if contender.startswith("fastvq "):
        with fastvq.use_backend(contender.removeprefix("fastvq ")):
            row(group, contender, run, rounds=rounds)
    else:
        row(group, contender, run, rounds=rounds)
