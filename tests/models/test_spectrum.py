# SPDX-License-Identifier: Apache-2.0
"""The spectrum that codes of sound are asked for, against formulas written out."""

import math

import pytest
import torch

from fastvq.models.spectrum import LogSpectrum, SpectrumHead

STRIDE, LEVELS = 16, 256


def head(speakers=None) -> SpectrumHead:
    return SpectrumHead(6, LogSpectrum(STRIDE, LEVELS), speakers)


def levels_of(sound):
    """Sound in [-1, 1] as mu-law in [0, 1], unrounded."""
    return (1 + sound.sign() * (1 + 255 * sound.abs()).log() / math.log(256)) / 2


def test_a_tone_stands_at_its_frequency_with_its_power():
    time = torch.arange(8 * STRIDE, dtype=torch.float64)
    # 10 cycles in a window of 4 strides; an amplitude of 0.5 is 0.25 at plus and minus 10
    tone = 0.5 * torch.cos(2 * torch.pi * 10 * time / (4 * STRIDE))
    found = LogSpectrum(STRIDE, LEVELS).double()(levels_of(tone)[None, None])
    assert found.shape == (1, 2 * STRIDE + 1, 8)
    inner = found[0, :, 2:6]  # whose windows lie inside the sound
    assert (inner.argmax(0) == 10).all()
    assert inner[10].tolist() == pytest.approx([math.log10(0.25**2 + 1e-7)] * 4, abs=1e-4)
    # a Hann window reaches one bin to each side, at half the amplitude
    assert inner[11].tolist() == pytest.approx([math.log10(0.125**2 + 1e-7)] * 4, abs=1e-4)
    assert inner[20].max() < -6.5


def test_it_is_the_formula():
    x = torch.rand(2, 1, 5 * STRIDE, dtype=torch.float64)
    sound = torch.sign(2 * x - 1) * (256 ** (2 * x - 1).abs() - 1) / 255
    size = 4 * STRIDE
    n = torch.arange(size, dtype=torch.float64)
    hann = 0.5 - 0.5 * torch.cos(2 * torch.pi * n / size)
    padded = torch.nn.functional.pad(sound[:, 0], (size // 2 - STRIDE // 2,) * 2)
    angles = -2 * torch.pi * torch.outer(torch.arange(size // 2 + 1.0, dtype=torch.float64), n)
    waves = torch.exp(1j * angles / size)
    expected = torch.stack(
        [
            ((waves @ (hann * padded[:, t * STRIDE :][:, :size]).T.cdouble()).abs() / hann.sum())
            .square()
            .T
            for t in range(5)
        ],
        dim=2,
    )
    found = LogSpectrum(STRIDE, LEVELS).double()(x)
    # the transform itself is of float32
    torch.testing.assert_close(found, (expected + 1e-7).log10(), rtol=0, atol=1e-3)


def test_silence_is_the_floor_and_nothing_learns_from_the_sound():
    x = torch.full((1, 1, 4 * STRIDE), 0.5, requires_grad=True)
    found = LogSpectrum(STRIDE, LEVELS)(x)
    torch.testing.assert_close(found, torch.full_like(found, -7))
    assert not found.requires_grad


def test_the_loss_is_the_mean_squared_error_of_the_guess():
    model, x = head(speakers=3), torch.rand(2, 1, 3 * STRIDE)
    features, speakers = torch.randn(2, 6, 3), torch.tensor([0, 2])
    error = model(features, speakers) - model.spectrum(x)
    torch.testing.assert_close(model.loss(features, speakers, x), error.square().mean())


def test_the_guess_knows_the_speaker():
    model, features = head(speakers=3), torch.randn(1, 6, 3)
    one, other = (model(features, torch.tensor([who])) for who in (0, 1))
    assert not torch.equal(one, other)


def test_under_autocast_the_quiet_is_not_lost():
    model, x = head(), 0.5 + 0.01 * torch.rand(1, 1, 4 * STRIDE)
    expected = model.spectrum(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.spectrum(x), expected)
