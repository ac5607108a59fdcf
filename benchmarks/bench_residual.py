# SPDX-License-Identifier: Apache-2.0
"""Residual quantization: a quantizer's eval call and training step, in groups, and by beam."""

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


def build_grouped(contender: str, codebooks: torch.Tensor) -> nn.Module:
    """The contender's quantizer of two groups, each holding its half of the channels."""
    levels, k, d = codebooks.shape
    halves = codebooks.split(d // 2, -1)
    if contender.startswith("fastvq "):
        quantizer = fastvq.GroupedResidualVQ(d, k, levels, 2)
        for group, codes in zip(quantizer.quantizers, halves, strict=True):
            group.book.vectors.copy_(codes)
        return quantizer
    quantizer = peers.lucidrains_grouped(d, k, levels, 2)
    for group, codes in zip(quantizer.rvqs, halves, strict=True):
        for layer, codebook in zip(group.layers, codes, strict=True):
            layer._codebook.embed.copy_(codebook.unsqueeze(0))
    return quantizer


@pytest.mark.parametrize("contender", CONTENDERS)
def test_grouped_eval(row, contender):
    n, k, d, levels = SHAPE
    x, codebooks = inputs()
    quantizer = build_grouped(contender, codebooks).eval()
    halves = zip(x[:500].split(d // 2, -1), codebooks.split(d // 2, -1), strict=True)
    with fastvq.use_backend("reference"):
        expected = [fastvq.ops.residual(*half).indices for half in halves]
    indices = quantizer(x[:500].unsqueeze(0))[1]
    found = indices[0].unbind(-2) if contender.startswith("fastvq ") else indices[:, 0].unbind(0)
    for actual, wanted in zip(found, expected, strict=True):
        assert (actual == wanted).all(-1).double().mean() >= 0.99

    def run() -> object:
        with torch.no_grad():
            return quantizer(x.unsqueeze(0))

    backend = contender.removeprefix("fastvq ") if contender.startswith("fastvq ") else "auto"
    with fastvq.use_backend(backend):
        row(f"eval, N={n} K={k} D={d} Q={levels} G=2", contender, run, rounds=ROUNDS)


@pytest.mark.parametrize("contender", ["fastvq", "FAISS ResidualQuantizer"])
def test_beam(row, contender):
    """Five sums kept; a beam of the peer in float32, whose error must not be smaller."""
    _, k, d, _ = SHAPE
    n, levels, beam = 1024, 4, 5
    x, codebooks = inputs()
    x, codebooks = x[:n], codebooks[:levels].contiguous()

    def ours() -> torch.Tensor:
        return fastvq.ops.beam_search(x, codebooks, beam=beam)

    run = ours if contender == "fastvq" else peers.faiss_beam(x, codebooks, beam)
    errors = []
    for indices in (run(), ours()):
        chosen = zip(codebooks, indices.unbind(-1), strict=True)
        errors.append((x - sum(codes[index] for codes, index in chosen)).square().mean())
    assert errors[1] <= errors[0] * (1 + 1e-4)
    row(f"beam of {beam}, N={n} K={k} D={d} Q={levels}", contender, run, rounds=ROUNDS)
