# SPDX-License-Identifier: Apache-2.0
"""What codes of sound must tell at once: the power of every frequency around each of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# windows of this many codes: 32 ms of 8 kHz sound at the paper's 64 samples per code
_CODES_PER_WINDOW = 4
# power, of a full-scale constant's, below which frequencies are silent: 70 dB down
_SILENCE = 1e-7


class SpectrumHead(nn.Module):
    r"""Guesses the log power spectrum around every code from the features of the codes.

    .. math:: s_{tf} = \log_{10}\bigl(10^{-7} + \lvert \textstyle\sum_u h_u\, x_{t r + u}\,
              e^{-2 \pi i f u / 4 r} \rvert^2 / (\textstyle\sum_u h_u)^2 \bigr), \qquad
              L = \overline{(s_{tf} - \hat s_{tf})^2}

    with a Hann window h of 4 r samples centred on the r samples of a code, f from 0 to 2 r, and
    zeros before and after the sound. One unit of s is 10 dB.

    Args:
        channels: C, of the features of the codes.
        stride: r, samples per code.
        levels: of the mu-law sound.
        num_speakers: speakers it is told apart, for their voices are in the spectrum and should
            not have to be in the codes; ``None`` for none.
    """

    window: Tensor

    def __init__(self, channels: int, stride: int, levels: int, num_speakers: int | None) -> None:
        super().__init__()
        self.stride, self.mu = stride, levels - 1
        window = torch.hann_window(_CODES_PER_WINDOW * stride)
        self.register_buffer("window", window / window.sum(), persistent=False)
        self.voice = nn.Embedding(num_speakers, channels) if num_speakers else None
        self.layers = nn.Sequential(
            nn.Conv1d(channels, 2 * channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv1d(2 * channels, len(window) // 2 + 1, 1),
        )

    def forward(self, features: Tensor, labels: Tensor | None) -> Tensor:
        """The guess ``[B, 2 r + 1, l]`` from features ``[B, C, l]`` and speakers ``[B]``."""
        if self.voice is not None:
            features = features + self.voice(labels)[:, :, None]
        spectrum: Tensor = self.layers(features)
        return spectrum

    def loss(self, features: Tensor, labels: Tensor | None, x: Tensor) -> Tensor:
        """0-d, the mean squared error of the guess; x is ``[B, 1, l r]`` in [0, 1]."""
        guess = self(features, labels)
        return F.mse_loss(guess.to(x.dtype), self.target(x))

    @torch.no_grad()
    def target(self, x: Tensor) -> Tensor:
        """The log power spectrum ``[B, 2 r + 1, l]`` of x ``[B, 1, l r]``."""
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
