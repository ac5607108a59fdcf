# SPDX-License-Identifier: Apache-2.0
"""Counts and sums by code, against the one-hot product and the scattered sums of the peers."""

from __future__ import annotations

import pytest
import torch

import fastvq
from fastvq import testing

SHAPES = ((65536, 512, 64), (65536, 1024, 128), (16384, 8192, 256))
BACKENDS = [s.name for s in fastvq.backends() if s.available and s.name != "reference"]


def one_hot(x: torch.Tensor, indices: torch.Tensor, k: int):
    """EnCodec's and lucidrains' way."""
    hot = torch.nn.functional.one_hot(indices, k).to(x.dtype)
    return hot.sum(0), hot.t() @ x


def scatter_add(x: torch.Tensor, indices: torch.Tensor, k: int):
    """Mimi's way."""
    counts = torch.zeros(k).scatter_add_(0, indices, torch.ones(len(x)))
    where = indices.unsqueeze(-1).expand_as(x)
    return counts, torch.zeros(k, x.shape[1]).scatter_add_(0, where, x)


PEERS = {"one-hot product": one_hot, "scatter_add": scatter_add}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
@pytest.mark.parametrize("contender", [*(f"fastvq {name}" for name in BACKENDS), *PEERS])
def test_statistics(row, shape, contender):
    n, k, d = shape
    x, _ = testing.gaussian(*shape)
    indices = torch.randint(k, (n,))
    function = PEERS.get(contender, fastvq.ops.statistics)
    backend = "auto" if contender in PEERS else contender.removeprefix("fastvq ")
    with fastvq.use_backend(backend):
        counts, sums = function(x, indices, k)
        expected = torch.zeros(k, d, dtype=torch.float64).index_add_(0, indices, x.double())
        testing.assert_within(sums, expected, 1e-5 * expected.abs().max())
        assert torch.equal(counts, torch.bincount(indices, minlength=k).float())
        row(
            f"N={n} K={k} D={d}",
            contender,
            lambda: function(x, indices, k),
            bytes_moved=4.0 * (n * d + k * d),
        )
