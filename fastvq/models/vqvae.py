# SPDX-License-Identifier: Apache-2.0
"""The VQ-VAE of "Neural Discrete Representation Learning" (arXiv 1711.00937)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fastvq.models import networks
from fastvq.models.autoencoder import AutoEncoder, AutoEncoderConfig, Pass
from fastvq.models.networks import Decoder, Encoder
from fastvq.models.quantizers import make_quantizer


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig(AutoEncoderConfig):
    """All that defines a `VQVAE`.

    The data and the networks are described at `NetworkConfig`, the codes at `QuantizerConfig`, the
    meaning of the decoder's output at `LikelihoodConfig`.

    Attributes:
        strides: downsampling of each stage; ``(2, 2)`` gives a quarter of the size in every axis.
        time_strides: of video, the downsampling of each stage in time, where it is not that in
            space; 1 keeps the frames.
    """

    strides: tuple[int, ...] = (2,)
    time_strides: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.stages()

    def stages(self) -> list[tuple[int, ...]]:
        """The stride of every axis at every stage."""
        return networks.axis_strides(self.spatial_dims, self.strides, self.time_strides)

    @property
    def stride(self) -> tuple[int, ...]:
        """Samples of the data per code in every axis: the products of the strides."""
        return networks.total_stride(self.stages())


class VQVAE(AutoEncoder[Tensor]):
    r"""Encoder, quantizer and decoder, trained together.

    .. math:: L = -\log p(x \mid q) + \beta \lVert z - \operatorname{sg}[q] \rVert^2

    with ``z`` the encoder's output, ``q`` the nearest code of each of its vectors and the gradient
    copied straight through it. The first term is the squared error under ``likelihood="mse"``; the
    second is that of the default quantizer, others bring their own. Each is averaged over its
    elements: see `QuantizerConfig` for the scale of :math:`\beta`.

    Every method takes data of any size whose axes are multiples of ``config.stride``; others are a
    ``ValueError`` (padding is the reader's task: see `fastvq.data`). The bits are deterministic on
    one machine with a given number of threads.

    Example:
        >>> import torch
        >>> model = VQVAE(VQVAEConfig(in_channels=3, strides=(2, 2), codebook_size=512))
        >>> images = torch.rand(2, 3, 32, 24)
        >>> model(images).indices.shape
        torch.Size([2, 8, 6])
        >>> model.decode(model.encode(images)).shape
        torch.Size([2, 3, 32, 24])
    """

    config_class: ClassVar = VQVAEConfig
    config: VQVAEConfig

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__(config)
        channels, stages = config.code_channels, config.stages()
        outputs = self.likelihood.parameter_channels(config.in_channels)
        self.encoder = Encoder(config, config.in_channels, stages, channels)
        self.quantizer = make_quantizer(config)
        self.decoder = Decoder(config, channels, stages, outputs)

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """One level, of the config's stride."""
        return (self.config.stride,)

    def encode(self, x: Tensor) -> Tensor:
        """The codes of ``x``: ``[B, C, ...] -> int64 [B, ...]``, each axis over the stride.

        With several codebooks G, ``[B, ..., G]``.
        """
        return self.encode_grids(x)[0]

    def decode(self, indices: Tensor) -> Tensor:
        """The data that codes stand for: ``int64 [B, ...] -> [B, C, ...]``, the mean.

        Raises:
            ValueError: not one axis per spatial dimension beside the batch (and the codebooks).
        """
        return self.decode_grids((indices,))

    def _pass(self, x: Tensor) -> Pass:
        quantized, indices, loss = self.quantizer(self.encoder(x))
        return Pass(self.decoder(quantized), (indices,), loss)

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.quantizer.encode(self.encoder(x)),)

    def _decode(self, grids: tuple[Tensor, ...]) -> Tensor:
        data: Tensor = self.decoder(self.quantizer.decode(grids[0]))
        return data

    def _indices(self, grids: tuple[Tensor, ...]) -> Tensor:
        return grids[0]
