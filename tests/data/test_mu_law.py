# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from fastvq.data import mu_law_decode, mu_law_encode


def test_levels_by_hand():
    # sign(x) ln(1 + 255 |x|) / ln 256, then [-1, 1] to 0..255
    half = math.floor((math.log(1 + 255 * 0.5) / math.log(256) + 1) / 2 * 255 + 0.5)
    signal = torch.tensor([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, -7.0])
    assert mu_law_encode(signal).tolist() == [0, 255 - half, 128, half, 255, 255, 0]
    assert half == 239


def test_every_level_returns_and_is_the_nearest_in_the_companded_domain():
    levels = torch.arange(256)
    signal = mu_law_decode(levels)
    assert torch.equal(mu_law_encode(signal).long(), levels)
    assert torch.equal(signal, -signal.flip(0))
    assert signal[255] == 1
    x = torch.linspace(-1, 1, 20001, dtype=torch.float64)
    companded = x.sign() * torch.log(1 + 255 * x.abs()) / math.log(256)
    error = companded - (mu_law_encode(x).double() * 2 / 255 - 1)
    # half the distance of two levels, and the rounding of float64
    assert error.abs().max() <= 1 / 255 + 1e-12


def test_shapes_and_dtypes():
    x = torch.randn(2, 3, 4)
    assert mu_law_encode(x).shape == (2, 3, 4)
    assert mu_law_encode(x).dtype == torch.uint8
    assert mu_law_decode(mu_law_encode(x)).dtype == torch.float32
    assert mu_law_decode(torch.empty(0, dtype=torch.uint8)).shape == (0,)


def test_refused_values():
    with pytest.raises(TypeError, match="signal must be float32"):
        mu_law_encode(torch.tensor([1]))
    with pytest.raises(ValueError, match="signal must be numbers, got NaN"):
        mu_law_encode(torch.tensor([0.0, math.nan]))
    with pytest.raises(TypeError, match="levels must be integers, got float32"):
        mu_law_decode(torch.tensor([1.0]))
    with pytest.raises(ValueError, match=r"levels must be in \[0, 255\], got \[-1, 256\]"):
        mu_law_decode(torch.tensor([-1, 256]))
