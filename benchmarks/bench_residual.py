# SPDX-License-Identifier: Apache-2.0
"""Residual quantization: the op, and a quantizer's eval call and training step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastvq
from benchmarks import peers
from fastvq import testing

# (N, K, D, Q): EnCodec's size at eight levels
SHAPE = (8192, 1024, 128, 8)
BACKENDS = [s.name for s in fastvq.backends() if s.available and s.name != "reference"]
CONTENDERS = [*(f"fastvq {name}" for name in BACKENDS), "lucidrains ResidualVQ"]
ROUNDS = 5


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """x ``[N, D]``, and codebooks ``[Q, K, D]`` as fine as what the level before leaves over."""
    n, k, d, levels = SHAPE
    x, _ = testing.gaussian(n, 1, d)
    codebooks = torch.randn(levels, k, d, generator=torch.Generator().manual_seed(1))
    return x, codebooks * 0.85 ** torch.arange(levels).view(-1, 1, 1)


def build(contender: str, codebooks: torch.Tensor) -> nn.Module:
    """The contender's quantizer, holding the given codes."""
    levels, k, d = codebooks.shape
    if contender.startswith("fastvq "):
        return fastvq.ResidualVQ(d, k, levels, start=fastvq.Given(codebooks))
    quantizer = peers.lucidrains_residual(d, k, levels)
    for layer, codebook in zip(quantizer.layers, codebooks, strict=True):
        layer._codebook.embed.copy_(codebook.unsqueeze(0))
        layer._codebook.embed_avg.copy_(codebook.unsqueeze(0))
    return quantizer


def refuse_wrong_answers(quantizer: nn.Module, x: torch.Tensor, codebooks: torch.Tensor) -> None:
    """The codes must be those of the exact loop, but for a near tie in a row of a hundred."""
    _, indices, _ = quantizer.eval()(x[:500].unsqueeze(0))
    with fastvq.use_backend("reference"):
        expected = fastvq.ops.residual(x[:500], codebooks).indices
    share = (indices[0] == expected).all(-1).double().mean().item()
    assert share >= 0.99, f"only {share:.2%} of the rows get the codes of the exact loop"


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("mode", ["training step", "eval"])
def test_residual_quantizer(row, contender, mode):
    n, k, d, levels = SHAPE
    x, codebooks = inputs()
    quantizer = build(contender, codebooks)
    refuse_wrong_answers(quantizer, x, codebooks)
    quantizer.train(mode == "training step")
    x = x.unsqueeze(0).requires_grad_(mode == "training step")
    cotangent = torch.randn_like(x)

    def step() -> None:
        quantized, _, loss = quantizer(x)
        torch.autograd.backward((quantized, loss.sum()), (cotangent, torch.ones(())))
        x.grad = None

    def call() -> object:
        with torch.no_grad():
            return quantizer(x)

    run = step if mode == "training step" else call
    group = f"{mode}, N={n} K={k} D={d} Q={levels}"
    if contender.startswith("fastvq "):
        with fastvq.use_backend(contender.removeprefix("fastvq ")):
            row(group, contender, run, rounds=ROUNDS)
    else:
        row(group, contender, run, rounds=ROUNDS)
