# SPDX-License-Identifier: Apache-2.0
"""The speech model of "Neural Discrete Representation Learning" (arXiv 1711.00937)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.models import blocks, networks
from fastvq.models.base import Bits, Coder
from fastvq.models.likelihoods import Softmax
from fastvq.models.networks import Encoder, NetworkConfig
from fastvq.models.quantizers import QuantizerConfig, make_quantizer
from fastvq.models.spectrum import LogSpectrum, SpectrumEncoder, SpectrumHead
from fastvq.priors import WaveNet, WaveNetConfig, sample


@dataclass(frozen=True, kw_only=True)
class WaveNetVQVAEConfig(NetworkConfig, QuantizerConfig):
    """All that defines a `WaveNetVQVAE`.

    The encoder is described at `NetworkConfig`, the codes at `QuantizerConfig`; the defaults that
    differ from theirs are the paper's, but for ``spectrum_weight``. Its decoder was larger than the
    default here.

    Attributes:
        spatial_dims: 1.
        in_channels: 1.
        encoder_input: ``"samples"`` (the paper), through strided convolutions, or ``"spectrum"``,
            the log power spectrum around every code (`LogSpectrum`), from which a short training
            learns more. The residual blocks and attention follow either.
        residual_blocks: of the encoder.
        codebook_size: codes K.
        strides: downsampling of each stage of the encoder: 64 in all.
        levels: of a sample, 256 of mu-law.
        num_speakers: speakers to tell the decoder apart; ``None`` for one that is not told.
        heard_codes: codes of each example, in a row from a random one on, whose samples the decoder
            learns from in a training step; ``None`` for all. The decoder costs most of a step and
            its samples are much alike; with fewer of each, a step has more examples, from which the
            codes and their spectrum learn the whole.
        spectrum_weight: weight of a second task for the codes, to tell the spectrum around them
            (`SpectrumHead`). The paper has none (0). In a short training the decoder
            learns to guess from past samples first, and without this most codes are never used.
        wavenet_channels: width of the decoder's stream from layer to layer.
        wavenet_gate_channels: width of its gates.
        wavenet_skip_channels: width of what decides its logits.
        wavenet_layers: its gated layers.
        wavenet_cycle: layers after which its dilations 1, 2, 4, ... begin again.
        wavenet_kernel_size: samples that a layer looks at.
    """

    spatial_dims: int = 1
    residual_blocks: int = 0
    codebook_size: int = 512
    strides: tuple[int, ...] = (2, 2, 2, 2, 2, 2)
    encoder_input: str = "samples"
    levels: int = 256
    num_speakers: int | None = None
    heard_codes: int | None = None
    spectrum_weight: float = 1.0
    wavenet_channels: int = 64
    wavenet_gate_channels: int = 64
    wavenet_skip_channels: int = 128
    wavenet_layers: int = 20
    wavenet_cycle: int = 10
    wavenet_kernel_size: int = 2

    def __post_init__(self) -> None:
        NetworkConfig.__post_init__(self)
        QuantizerConfig.__post_init__(self)
        for name in ("spatial_dims", "in_channels"):
            if getattr(self, name) != 1:
                raise ValueError(f"{name} must be 1 for speech, got {getattr(self, name)}")
        if self.heard_codes is not None:
            _checks.positive("heard_codes", self.heard_codes)
        _checks.one_of("encoder_input", self.encoder_input, ("samples", "spectrum"))
        _checks.fraction("spectrum_weight", self.spectrum_weight, high=math.inf)
        self.stages()
        Softmax(self.levels)
        self.wavenet()

    def stages(self) -> list[tuple[int, ...]]:
        """The stride of every stage."""
        return networks.axis_strides(1, self.strides, None)

    @property
    def stride(self) -> tuple[int, ...]:
        """Samples per code."""
        return networks.total_stride(self.stages())

    def wavenet(self) -> WaveNetConfig:
        """The decoder: a `WaveNet` over levels, told the speaker and the codes."""
        return WaveNetConfig(
            self.levels,
            self.num_speakers,
            self.hidden_channels,
            # sound enough is at hand, and a speaker who is not told would be a speaker encoded
            dropout=0.0,
            code_dropout=0.0,
            label_dropout=0.0,
            channels=self.wavenet_channels,
            gate_channels=self.wavenet_gate_channels,
            skip_channels=self.wavenet_skip_channels,
            layers=self.wavenet_layers,
            cycle=self.wavenet_cycle,
            kernel_size=self.wavenet_kernel_size,
        )


class WaveNetVQVAEOutput(NamedTuple):
    """What one pass of a `WaveNetVQVAE` returns.

    Attributes:
        indices: int64 ``[B, l]`` (``[B, l, G]`` with several codebooks), the codes.
        loss: 0-d, the sum of the three below; what training minimises.
        reconstruction_loss: 0-d, nats per sample of the decoder, of those it heard.
        quantizer_loss: 0-d, the weighted losses of the quantizer.
        spectrum_loss: 0-d, the weighted error of the spectrum; 0 where its weight is.
        parameters: ``[B, levels, L]``, the logits of every sample heard given those before it.
    """

    indices: Tensor
    loss: Tensor
    reconstruction_loss: Tensor
    quantizer_loss: Tensor
    spectrum_loss: Tensor
    parameters: Tensor


class WaveNetVQVAE(Coder[Tensor]):
    r"""Strided encoder, quantizer, and a WaveNet that says what the codes stand for.

    .. math:: L = -\frac{1}{L} \sum_t \log p(x_t \mid x_1, \dots, x_{t-1}, q, \text{speaker})
              + L_\text{quantizer} + w L_\text{spectrum}

    The decoder writes one sample after another, told the speaker and, at every sample, the codes
    around it. What it can guess from the samples before and from the speaker, the codes need not
    hold: so they come to hold what is said. To decode one speaker's codes with another's label is
    to convert the voice. In training it may hear a part of each example: ``config.heard_codes``.

    Sound is ``[B, 1, L]`` in [0, 1], level / (levels - 1) of each mu-law level, as `fastvq.data`
    gives it; L is a multiple of ``config.stride``. Codes are one grid ``[B, l]``.

    Args:
        config: see `WaveNetVQVAEConfig`.

    Source: 1711.00937, section 4.3.

    Example:
        >>> import torch
        >>> model = WaveNetVQVAE(WaveNetVQVAEConfig(num_speakers=3, wavenet_layers=4))
        >>> sound = torch.randint(256, (2, 1, 128)) / 255
        >>> codes = model.encode(sound)
        >>> codes.shape
        torch.Size([2, 2])
        >>> model.decode(codes, labels=torch.tensor([0, 2])).shape
        torch.Size([2, 1, 128])
    """

    config_class: ClassVar = WaveNetVQVAEConfig
    config: WaveNetVQVAEConfig

    def __init__(self, config: WaveNetVQVAEConfig) -> None:
        super().__init__(config)
        channels, hidden = config.code_channels, config.hidden_channels
        self.likelihood = Softmax(config.levels)
        spectrum = LogSpectrum(math.prod(config.stride), config.levels)
        self.encoder = (
            SpectrumEncoder(config, spectrum, channels)
            if config.encoder_input == "spectrum"
            else Encoder(config, 1, config.stages(), channels)
        )
        self.quantizer = make_quantizer(config)
        # a look at the neighbouring codes, before they are repeated to the rate of the samples
        self.context = blocks.convolution(1, channels, hidden, config.kernel_size)
        self.spectrum = None
        if config.spectrum_weight:
            self.spectrum = SpectrumHead(hidden, spectrum, config.num_speakers)
        self.decoder = WaveNet(config.wavenet())

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """One level, of the config's stride."""
        return (self.config.stride,)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> WaveNetVQVAEOutput:
        """One pass; in training mode it also moves the codebooks that learn by moving average.

        Args:
            x: ``[B, 1, L]`` floating, of the config's levels in [0, 1].
            labels: int64 ``[B]``, the speakers, where the model is told them.

        Raises:
            TypeError, ValueError: sound of another shape, labels missing or out of range, or (on
                the CPU) a value that is none of the levels.
        """
        self._check(x)
        quantized, indices, quantizer_loss = self.quantizer(self.encoder(x))
        features = self.context(quantized)
        heard, about = self._heard(x, features)
        logits = self._logits(heard, about, labels)
        reconstruction_loss = self.likelihood.loss(logits, heard)
        spectrum_loss = torch.zeros_like(quantizer_loss)
        if self.spectrum is not None:
            error = self.spectrum.loss(features, labels, x)
            spectrum_loss = self.config.spectrum_weight * error
        loss = reconstruction_loss + quantizer_loss + spectrum_loss
        return WaveNetVQVAEOutput(
            indices, loss, reconstruction_loss, quantizer_loss, spectrum_loss, logits
        )

    def encode(self, x: Tensor) -> Tensor:
        """The codes of ``x``: ``[B, 1, L] -> int64 [B, L / stride]`` (``[B, l, G]``)."""
        return self.encode_grids(x)[0]

    @torch.no_grad()
    def decode(
        self,
        indices: Tensor,
        labels: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sound that codes stand for, drawn sample by sample through the WaveNet's cache.

        Args:
            indices: int64 ``[B, l]``, or ``[B, l, G]`` with several codebooks.
            labels: int64 ``[B]``, who is to speak, where the model is told.
            temperature: below 1 the unlikelier levels are drawn less often.
            generator: source of the random numbers; see `fastvq.priors.sample`. The same state
                gives the same sound.

        Returns:
            Levels in [0, 1], float32 ``[B, 1, L]``.

        Raises:
            TypeError, ValueError, IndexError: codes or labels that are none of the model's.
        """
        self._check_grids((indices,))
        features = self.context(self.quantizer.decode(indices))
        levels = sample(
            self.decoder,
            (features.shape[2] * math.prod(self.config.stride),),
            labels,
            context=features,
            batch=len(indices),
            temperature=temperature,
            generator=generator,
        )
        return levels.unsqueeze(1).float() / (self.config.levels - 1)

    def reconstruct(
        self,
        x: Tensor,
        labels: Tensor | None = None,
        *,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """``decode(encode(x))``; with other labels than the speakers', converted voices."""
        return self.decode(self.encode(x), labels, temperature=temperature, generator=generator)

    @torch.no_grad()
    def bits_per_dim(
        self, x: Tensor, labels: Tensor | None = None, code_bits: Tensor | float | None = None
    ) -> Bits:
        """Bits per sample, a bound from above; see `AutoEncoder.bits_per_dim`.

        In training mode the codebooks do not move.
        """
        self._check(x)
        features = self.context(self.quantizer.decode(self._encode(x)[0]))
        return self._bits(self.likelihood.nll(self._logits(x, features, labels), x), x, code_bits)

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.quantizer.encode(self.encoder(x)),)

    def _heard(self, x: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """The samples ``[B, 1, n r]`` that the decoder learns from, and the features of their codes
        ``[B, hidden_channels, n]``; in eval mode all of them.
        """
        heard, columns = self.config.heard_codes, features.shape[2]
        if not self.training or heard is None or heard >= columns:
            return x, features
        start = torch.randint(columns - heard + 1, (len(x), 1, 1), device=x.device)
        codes = start + torch.arange(heard, device=x.device)  # [B, 1, n]
        samples = x.unflatten(2, (columns, -1)).take_along_dim(codes.unsqueeze(3), 2)
        return samples.flatten(2), features.take_along_dim(codes, 2)

    def _logits(self, x: Tensor, features: Tensor, labels: Tensor | None) -> Tensor:
        digits = self.likelihood.digits(x)[:, 0]
        logits: Tensor = self.decoder(digits, labels, features)
        return logits.transpose(1, 2)  # [B, levels, L]
