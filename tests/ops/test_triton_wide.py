"""Vectors too wide for a tile are rounded before the search, a part of the rows at a time."""

import pytest
import torch

import fastvq
from fastvq import testing
from fastvq.ops import Nearest, nearest

pytest.importorskip("triton", reason="Triton has no build for this platform")

HALF, SINGLE = torch.float16, torch.float32


@pytest.fixture(autouse=True)
def _triton():
    with fastvq.use_backend("triton"):
        yield


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "dot"])
@pytest.mark.parametrize(("channels", "dtype"), [(272, SINGLE), (300, HALF)])
def test_exact(channels, dtype, metric):
    # more rows than the interpreter's one program takes at a time
    x, codebook = testing.gaussian(140, 30, channels, dtype=dtype)
    x[3, 5], x[137, 0] = torch.nan, torch.inf
    testing.assert_nearest(x, codebook, nearest(x, codebook, metric=metric), metric)


def test_what_rounding_hides_is_not_decided_by_it():
    # codes in threes, nearer to each other than 16 bits can tell: no group is alone, nor are two
    x, codebook = testing.gaussian(130, 12, 272)
    codebook = torch.cat([codebook + 1e-4 * torch.randn(12, 272) for _ in range(3)])
    x = codebook[torch.randint(36, (130,))] + 0.3 * x
    testing.assert_nearest(x, codebook, nearest(x, codebook))
    fast = nearest(x, codebook, precision="fast").indices
    assert testing.wrong_codes(x, codebook, fast).any()


def test_heads_and_channels_first():
    x, codebooks = testing.gaussian(150, 2 * 20, 272)
    codebooks = codebooks.view(2, 20, 272)
    images = testing.channels_first(x, 5, 5).unsqueeze(-2).expand(-1, -1, -1, 2, -1)
    found = nearest(images, codebooks)
    for h in range(2):
        mine = Nearest(*(t[..., h].flatten() for t in found))
        testing.assert_nearest(x, codebooks[h], mine)
