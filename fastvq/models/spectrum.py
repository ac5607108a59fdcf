# SPDX-License-Identifier: Apache-2.0
"""The power of every frequency around each code of sound: what codes are made from, and tell."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq.models import blocks, networks
from fastvq.models.networks import NetworkConfig

# windows of this many codes: 32 ms of 8 kHz sound at the paper's 64 samples per code
_CODES_PER_WINDOW = 4
# power, of a full-scale constant's, below which frequencies are silent: 70 dB down
_SILENCE = 1e-7
# most of speech is near here, of a spectrum from -7 to 0: taken off what goes in, which is then
# near zero, and put on the guess, which without it would first learn a constant
_SPEECH = -6.0


class LogSpectrum(nn.Module):
    r"""Sound to the log power spectrum around every code.

    .. math:: s_{tf} = \log_{10}\bigl(10^{-7} + \lvert \textstyle\sum_u h_u\, x_{t r + u}\,
              e^{-2 \pi i f u / 4 r} \rvert^2 / (\textstyle\sum_u h_u)^2 \bigr)

    with a Hann window h of 4 r samples centred on the r samples of a code, f from 0 to 2 r, and
    zeros before and after the sound. One unit of s is 10 dB.

    Args:
        stride: r, samples per code.
        levels: of the mu-law sound.
    """

    window: Tensor

    def __init__(self, stride: int, levels: int) -> None:
        super().__init__()
        self.stride, self.mu = stride, levels - 1
        window = torch.hann_window(_CODES_PER_WINDOW * stride)
        self.register_buffer("window", window / window.sum(), persistent=False)

    @property
    def bins(self) -> int:
        """How many frequencies: 2 r + 1."""
        return len(self.window) // 2 + 1

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """The spectrum ``[B, 2 r + 1, l]`` of x ``[B, 1, l r]``, mu-law levels in [0, 1]."""
        compressed = 2 * x[:, 0] - 1
        sound = compressed.sign() * ((1.0 + self.mu) ** compressed.abs() - 1) / self.mu
        size = _CODES_PER_WINDOW * self.stride
        before = (size - self.stride) // 2
        sound = F.pad(sound, (before, size - self.stride - before))
        # in float32 also under autocast, whose 16 bits would lose the quiet frequencies
        with torch.autocast(x.device.type, enabled=False):
            windows = sound.unfold(-1, size, self.stride) * self.window
            power = torch.fft.rfft(windows.float()).abs().square()  # [B, l, 2 r + 1]
        return (power + _SILENCE).log10().transpose(1, 2).to(x.dtype)


class SpectrumEncoder(nn.Module):
    """Sound ``[B, 1, l r]`` to vectors ``[B, outputs, l]``, from the log power spectrum.

    Source: the input is in the place of the cepstra of 1901.08810, section III-A.
    """

    def __init__(self, config: NetworkConfig, spectrum: LogSpectrum, outputs: int) -> None:
        super().__init__()
        hidden, kernel = config.hidden_channels, config.kernel_size
        self.spectrum = spectrum
        self.layers = nn.Sequential(
            blocks.convolution(1, spectrum.bins, hidden, kernel),
            nn.ReLU(),
            *networks.trunk(config),
            blocks.convolution(1, hidden, outputs, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the vectors that will be quantized."""
        vectors: Tensor = self.layers(self.spectrum(x) - _SPEECH)
        return vectors


class SpectrumHead(nn.Module):
    """Guesses the log power spectrum around every code from the features of the codes.

    Args:
        channels: C, of the features of the codes.
        spectrum: what is guessed.
        num_speakers: speakers it is told apart, for their voices are in the spectrum and should
            not have to be in the codes; ``None`` for none.
    """

    def __init__(self, channels: int, spectrum: LogSpectrum, num_speakers: int | None) -> None:
        super().__init__()
        self.spectrum = spectrum
        self.voice = nn.Embedding(num_speakers, channels) if num_speakers else None
        self.layers = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(2 * channels, spectrum.bins, 1),
        )

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """The guess ``[B, 2 r + 1, l]`` from features ``[B, C, l]`` and speakers ``[B]``."""
        if self.voice is not None:
            features = features + self.voice(labels)[:, :, None]
        guess: Tensor = self.layers(features) + _SPEECH
        return guess

    def loss(self, features: Tensor, labels: Tensor | None, x: Tensor) -> Tensor:
        """0-d, the mean squared error of the guess; x is ``[B, 1, l r]`` in [0, 1]."""
        guess = self(features, labels)
        return F.mse_loss(guess.to(x.dtype), self.spectrum(x))
