"""The promise at scale: ten million rows of many kinds against float64, and not one wrong code."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastvq import ops, testing

# 24 kinds of 420,000 rows: 10,080,000
ROWS = 420_000
CHUNK = 1 << 15


class Kind(NamedTuple):
    """A distribution of rows and codes; seeds follow from its place in the list."""

    codes: int
    channels: int
    data: str
    metric: str = "euclidean"


KINDS = (
    *(Kind(k, d, data) for k, d in ((512, 8), (300, 33), (128, 64)) for data in (
        "gaussian", "clustered", "offset", "heavy tails", "lattice", "twins"
    )),
    *(Kind(256, 24, data, metric) for metric in ("cosine", "dot") for data in (
        "gaussian", "clustered", "heavy tails"
    )),
)  # fmt: skip


def make(kind: Kind, seed: int) -> tuple[Tensor, Tensor]:
    """Rows ``[ROWS, D]`` and codes ``[K, D]``."""
    shape = (ROWS, kind.codes, kind.channels)
    x, codebook = testing.gaussian(*shape, seed=seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    if kind.data == "clustered":
        return testing.clustered(*shape, seed=seed)
    if kind.data == "offset":
        return x + 300, codebook + 300
    if kind.data == "heavy tails":
        scale = torch.randn(ROWS, 1, generator=generator).mul(3).exp()
        return x * scale, codebook * torch.randn(kind.codes, 1, generator=generator).exp()
    if kind.data == "lattice":  # many exact ties, and equal codes
        return x.round(), codebook.round()
    if kind.data == "twins":  # every code twice, a bit in the last place apart
        half = codebook[: kind.codes // 2]
        twin = half * (1 + 2.0**-23)
        return x, torch.stack([half, twin], 1).flatten(0, 1)
    return x, codebook


def scores(x: Tensor, codebook: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Float64 distances ``[N, K]`` in the expanded form, and a bound of their error ``[N, 1]``."""
    x, codebook = x.double(), codebook.double()
    if metric == "cosine":
        x = x / x.norm(dim=-1, keepdim=True)
        codebook = codebook / codebook.norm(dim=-1, keepdim=True)
    elif metric == "euclidean":
        centre = codebook.mean(0)
        x, codebook = x - centre, codebook - centre
    noise = x.norm(dim=-1, keepdim=True) + codebook.norm(dim=-1).max()
    products = x @ codebook.t()
    distances = {
        "dot": lambda: -products,
        "cosine": lambda: 1 - products,
        "euclidean": lambda: (
            x.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * products
        ),
    }[metric]()
    return distances, noise.square() * (x.shape[-1] + 16) * 2.0**-52


def count_wrong(x: Tensor, codebook: Tensor, indices: Tensor, metric: str) -> int:
    """Rows whose code breaks the promise; differences tell what the expanded form cannot."""
    equal = (codebook.unsqueeze(0) == codebook.unsqueeze(1)).all(-1).int().argmax(-1)
    assert torch.equal(equal[indices], indices), "not the lowest of equal codes"
    wrong = 0
    for part, index in zip(x.split(CHUNK), indices.split(CHUNK), strict=True):
        distances, noise = scores(part, codebook, metric)
        best = distances.amin(-1, keepdim=True)
        chosen = distances.gather(-1, index.unsqueeze(-1))
        # proven right where even the least favourable rounding leaves the chosen one near enough
        allowed = testing.NEAREST_BUDGET * (best.abs() - noise)
        near = chosen + noise <= best - noise + allowed
        doubtful = ~near.squeeze(-1)
        rows = doubtful.nonzero().flatten()
        for some in rows.split(256):
            bad = testing.wrong_codes(part[some], codebook, index[some], metric)
            wrong += int(bad.sum())
    return wrong


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(KINDS)), ids=lambda i: "-".join(map(str, KINDS[i])))
def test_no_wrong_code(place):
    kind = KINDS[place]
    x, codebook = make(kind, place)
    indices = ops.nearest(x, codebook, metric=kind.metric).indices
    assert count_wrong(x, codebook, indices, kind.metric) == 0
