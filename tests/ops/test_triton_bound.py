"""Rows built to sit at the bound of the Triton search: rounding to 16 bits turns the answer round.

All residues of the rounding point one way, along the difference of the two best codes, so that
a bound which forgot one of its terms would prove the wrong code.
"""

from importlib import import_module

import pytest
import torch

import fastvq
from fastvq.ops import nearest

pytest.importorskip("triton", reason="Triton has no build for this platform")

MODULE = import_module("fastvq.ops.nearest._triton")
CHANNELS = (64, 272)  # held by the tile, and rounded before it


@pytest.fixture(autouse=True)
def _triton():
    with fastvq.use_backend("triton"):
        yield


def along_and_across(channels):
    """A vector of signs, and one orthogonal to it, whose neighbours in 16 bits lie 2^-10 apart."""
    u = torch.where(torch.rand(channels) < 0.5, -1.0, 1.0)
    s = 1.5 * u
    s[::2] *= -1
    return u, s


def lost_in_rounding(u, s):
    """s, a part along u that 16 bits round away, and one against u, half of it, that they keep."""
    lost = 0.9 * 2.0**-11
    x = s + lost * u
    x[0] -= round(lost * len(u) / 2 / 2.0**-10) * 2.0**-10 * u[0]
    assert (x.double() @ u.double()) > 0 > (x.half().double() @ u.double())
    return x


def opposite(vector):
    """64 codes about 0, exact in 16 bits; of them 0 and 41, to be replaced, share no group."""
    return torch.stack([vector * (-1) ** k for k in range(64)])


@pytest.mark.parametrize("channels", CHANNELS)
def test_rounding_of_x(channels):
    u, s = along_and_across(channels)
    codebook = opposite(2 * u)
    codebook[0], codebook[41] = u, -u
    x = lost_in_rounding(u, s).expand(3, -1)
    assert nearest(x, codebook, precision="fast").indices.tolist() == [41] * 3
    assert nearest(x, codebook).indices.tolist() == [0] * 3


@pytest.mark.parametrize("channels", CHANNELS)
def test_rounding_of_codes(channels):
    u, s = along_and_across(channels)
    code = lost_in_rounding(u, s)
    codebook = opposite(s)
    codebook[0], codebook[41] = code, -code
    x = u.expand(3, -1)
    # the group of 41, whose best is then found in float32
    assert 0 not in nearest(x, codebook, metric="dot", precision="fast").indices
    assert nearest(x, codebook, metric="dot").indices.tolist() == [0] * 3


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_second_group_may_hold_the_nearest(channels, monkeypatch):
    """Two groups are proven, not one: what float32 finds in the second is the answer."""
    u, s = along_and_across(channels)
    codebook = opposite(2 * u)
    codebook[0], codebook[41] = u, -u
    x = lost_in_rounding(u, s).expand(3, -1)
    seen, refine = [], MODULE._refine

    def watched(*args):
        seen.append(args[5].flatten().tolist())
        refine(*args)

    monkeypatch.setattr(MODULE, "_refine", watched)
    assert nearest(x, codebook).indices.tolist() == [0] * 3
    # before float64, which would find it anyway
    assert seen == [[0] * 3]
