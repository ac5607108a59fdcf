# SPDX-License-Identifier: Apache-2.0
"""Entropies over all codes, forward and backward, against the losses that form N x K."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastvq
from benchmarks import peers
from fastvq import testing

# (N, K, D)
SHAPES = ((1024, 8192, 16), (4096, 65536, 16), (1024, 16384, 256))
BACKENDS = [s.name for s in fastvq.backends() if s.available and s.name != "reference"]
ROUNDS = 3
BETA = 0.5

Loss = Callable[[Tensor, Tensor], Tensor]


def ours(x: Tensor, codebook: Tensor) -> Tensor:
    out = fastvq.ops.entropy(x, codebook, inverse_temperature=BETA)
    return out.sample - out.batch


CONTENDERS: dict[str, Loss] = {
    **{f"fastvq {name}": ours for name in BACKENDS},
    "torch, as usually written": lambda x, c: peers.dense_entropies(x, c, BETA),
    "torch, a chunk at a time": lambda x, c: peers.chunked_entropies(x, c, BETA),
}


def refuse_wrong_answers(loss: Loss, x: Tensor, codebook: Tensor) -> None:
    """Value and gradient of some of the rows must be those of float64."""
    x = x[:200].clone().requires_grad_()
    wide = x.detach().double().requires_grad_()
    actual = loss(x, codebook)
    expected = peers.chunked_entropies(wide, codebook.detach().double(), BETA)
    assert abs(actual.item() - expected.item()) <= 1e-4
    grads = torch.autograd.grad(actual, x)[0], torch.autograd.grad(expected, wide)[0]
    testing.assert_within(grads[0], grads[1], 1e-3 * grads[1].abs().max())


# the 1e-8 that the usual way has in its logarithm moves the loss of 65536 codes by 6e-4, which is
# refused; it would hold 7 GB
ROWS = [
    (contender, shape)
    for shape in SHAPES
    for contender in CONTENDERS
    if not (contender == "torch, as usually written" and shape[1] == 65536)
]


@pytest.mark.parametrize(
    ("contender", "shape"), ROWS, ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v))
)
def test_forward_and_backward(row, benchmark, shape, contender):
    n, k, d = shape
    x, codebook = testing.gaussian(*shape)
    x.requires_grad_(), codebook.requires_grad_()
    loss = CONTENDERS[contender]
    backend = contender.removeprefix("fastvq ") if contender.startswith("fastvq ") else "auto"

    def run() -> object:
        return torch.autograd.grad(loss(x, codebook), (x, codebook))

    with fastvq.use_backend(backend):
        refuse_wrong_answers(loss, x.detach(), codebook)
        row(f"N={n} K={k} D={d}", contender, run, rounds=ROUNDS)
    peak = benchmark.extra_info["peak_extra_bytes"]
    if peak is not None:
        benchmark.extra_info["bytes_per_pair"] = peak / (n * k)


@pytest.mark.parametrize("shape", SHAPES[:1], ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("contender", [*(f"fastvq {name}" for name in BACKENDS), "torch gumbel"])
def test_sampling(row, shape, contender):
    n, k, d = shape
    x, codebook = testing.gaussian(*shape)

    def gumbel() -> Tensor:
        noise = torch.rand(n, k).log_().neg_().log_().neg_()
        return (noise - BETA * torch.cdist(x, codebook).square()).argmax(-1)

    def sample() -> Tensor:
        return fastvq.ops.sample_codes(x, codebook, seed=1, inverse_temperature=BETA)

    run = gumbel if contender == "torch gumbel" else sample
    backend = contender.removeprefix("fastvq ") if contender.startswith("fastvq ") else "auto"
    with fastvq.use_backend(backend):
        row(f"sampling N={n} K={k} D={d}", contender, run, rounds=ROUNDS)
