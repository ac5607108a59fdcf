# SPDX-License-Identifier: Apache-2.0
"""The search: every backend that runs here, every peer, and the bare matrix product.

Gaussian data are the worst case for a certificate, clustered data what a trained model gives; the
peers' time does not depend on it, so the latter are timed against the fastest of them alone. The
share of rows that the first pass certified stands in the native rows.

A contender is timed only after its answer has been checked against float64 on a sample of rows: a
backend of fastvq must be right on all of them, a peer on 99 of 100 (float32 in the expanded form is
not exact, and the share is printed with its row).
"""

from __future__ import annotations

import pytest
import torch

import fastvq
from benchmarks import peers
from fastvq import testing

# (N, K, D): a small VQ-VAE, a larger one, VQGAN's codebook, many rows, DAC's narrow codes
SHAPES = (
    (65536, 512, 64),
    (65536, 1024, 128),
    (16384, 8192, 256),
    (262144, 1024, 64),
    (65536, 1024, 8),
)
# float64 direct differences: a specification, timed where that takes seconds
REFERENCE_SHAPES = ((65536, 512, 64), (65536, 1024, 8))
CLUSTERED_CONTENDERS = ("fastvq native", "FAISS IndexFlatL2", "x @ c.T alone")
CHECKED_ROWS = 2000
PEER_WRONG_SHARE = 0.01


def fastvq_on(backend: str) -> peers.Search:
    def search(x: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
        with fastvq.use_backend(backend):
            return fastvq.ops.nearest(x, codebook).indices

    return search


OURS = {f"fastvq {s.name}": fastvq_on(s.name) for s in fastvq.backends() if s.available}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("contender", [*OURS, *peers.SEARCHES, "x @ c.T alone"])
@pytest.mark.parametrize("data", ["gaussian", "clustered"])
def test_search(row, shape, contender, data):
    if contender == "fastvq reference" and (shape not in REFERENCE_SHAPES or data == "clustered"):
        pytest.skip("the reference is timed on the smaller shapes only")
    if data == "clustered" and contender not in CLUSTERED_CONTENDERS:
        pytest.skip("its time does not depend on the data")
    x, codebook = getattr(testing, data)(*shape)
    search = {**OURS, **peers.SEARCHES}.get(contender, peers.matmul_alone)
    if search is not peers.matmul_alone:
        refuse_wrong_answers(contender, search, x, codebook)
    n, k, d = shape
    rounds = 2 if contender == "fastvq reference" else 7
    row(
        f"N={n} K={k} D={d} {data}",
        contender,
        lambda: search(x, codebook),
        flops=2.0 * n * k * d,
        rounds=rounds,
        certified=certified_share(search, x, codebook) if contender == "fastvq native" else None,
    )


def certified_share(search: peers.Search, x: torch.Tensor, codebook: torch.Tensor) -> float:
    """Share of the scored rows for which the scores proved the answer."""
    before = torch.ops.fastvq_native.search_counts()
    search(x, codebook)
    scored, certified, *_ = (torch.ops.fastvq_native.search_counts() - before).tolist()
    return certified / scored


def refuse_wrong_answers(
    contender: str, search: peers.Search, x: torch.Tensor, codebook: torch.Tensor
) -> None:
    sample = torch.randperm(len(x))[:CHECKED_ROWS]
    indices = search(x, codebook)[sample]
    share = testing.wrong_codes(x[sample], codebook, indices).double().mean().item()
    allowed = 0.0 if contender in OURS else PEER_WRONG_SHARE
    assert share <= allowed, f"{contender} picks a wrong code on {share:.2%} of the rows"
