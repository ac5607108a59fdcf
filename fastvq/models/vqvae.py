# SPDX-License-Identifier: Apache-2.0
"""The VQ-VAE of "Neural Discrete Representation Learning" (arXiv 1711.00937)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks, _pretrained
from fastvq.models import blocks
from fastvq.nn import EMA, Gradient, VectorQuantizer

LEARNING = ("ema", "gradient")


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """All that defines a `VQVAE`; plain values, so that JSON holds it.

    Attributes:
        in_channels: channels of the data: 1 for grey images or mono audio, 3 for RGB.
        hidden_channels: width of the encoder and the decoder.
        residual_channels: width inside the residual blocks.
        residual_blocks: residual blocks in the encoder, and again in the decoder.
        strides: downsampling of each stage, in every axis; ``(2, 2)`` gives a quarter of the size.
        codebook_size: codes K.
        codebook_dim: channels D of a code.
        commitment_weight: beta of the paper, relative to the mean squared error of the data.
        learning: how the codebook follows the encoder: ``"ema"`` (appendix A.1 of the paper) or
            ``"gradient"`` (its equation 3).
        decay: of the moving averages; used by ``"ema"`` alone.
        spatial_dims: 1 for signals, 2 for images, 3 for video.
    """

    in_channels: int = 1
    hidden_channels: int = 64
    residual_channels: int = 32
    residual_blocks: int = 2
    strides: tuple[int, ...] = (2,)
    codebook_size: int = 64
    codebook_dim: int = 16
    commitment_weight: float = 0.25
    learning: str = "ema"
    decay: float = 0.99
    spatial_dims: int = 2

    def __post_init__(self) -> None:
        for name in (
            "in_channels",
            "hidden_channels",
            "residual_channels",
            "codebook_size",
            "codebook_dim",
        ):
            _checks.positive(name, getattr(self, name))
        if self.residual_blocks < 0:
            raise ValueError(f"residual_blocks must be at least 0, got {self.residual_blocks}")
        if not self.strides or min(self.strides) < 2:
            raise ValueError(f"strides must be one or more ints >= 2, got {list(self.strides)}")
        _checks.one_of("learning", self.learning, LEARNING)
        if self.spatial_dims not in (1, 2, 3):
            raise ValueError(f"spatial_dims must be 1, 2 or 3, got {self.spatial_dims}")

    @property
    def stride(self) -> int:
        """Samples of the data per code, in every axis: the product of the strides."""
        return math.prod(self.strides)


class VQVAEOutput(NamedTuple):
    """What one pass of a `VQVAE` returns.

    Attributes:
        reconstruction: ``[B, C, ...]``, the shape of the data; not clamped.
        indices: int64 ``[B, ...]``, the grid of codes.
        loss: 0-d, ``reconstruction_loss + quantizer_loss``; what training minimises.
        reconstruction_loss: 0-d, mean squared error.
        quantizer_loss: 0-d, the weighted commitment loss, and the codebook loss where gradients
            train the codebook.
    """

    reconstruction: Tensor
    indices: Tensor
    loss: Tensor
    reconstruction_loss: Tensor
    quantizer_loss: Tensor


class Encoder(nn.Module):
    """Data ``[B, in_channels, L, ...]`` to vectors ``[B, codebook_dim, L / stride, ...]``."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        dims, hidden = config.spatial_dims, config.hidden_channels
        layers: list[nn.Module] = []
        channels = config.in_channels
        for stride in config.strides:
            layers += [blocks.down(dims, channels, hidden, stride), nn.ReLU()]
            channels = hidden
        self.layers = nn.Sequential(
            *layers,
            blocks.convolution(dims, hidden, hidden, 3),
            blocks.residual_stack(dims, hidden, config.residual_channels, config.residual_blocks),
            blocks.convolution(dims, hidden, config.codebook_dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Returns the vectors that will be quantized."""
        vectors: Tensor = self.layers(x)
        return vectors


class Decoder(nn.Module):
    """Vectors ``[B, codebook_dim, L, ...]`` to data ``[B, in_channels, L * stride, ...]``."""

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        dims, hidden = config.spatial_dims, config.hidden_channels
        layers: list[nn.Module] = []
        for stride in reversed(config.strides):
            layers += [blocks.up(dims, hidden, hidden, stride), nn.ReLU()]
        self.layers = nn.Sequential(
            blocks.convolution(dims, config.codebook_dim, hidden, 3),
            blocks.residual_stack(dims, hidden, config.residual_channels, config.residual_blocks),
            *layers,
            blocks.convolution(dims, hidden, config.in_channels, 3),
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Returns the reconstruction, not clamped."""
        data: Tensor = self.layers(vectors)
        return data


class VQVAE(nn.Module):
    """Encoder, vector quantizer and decoder, trained together.

    ``loss = mse(x, decoder(q)) + beta * |encoder(x) - q|^2``, with
    ``q`` the nearest code of each encoder output and the gradient copied straight through it.

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

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quantizer = VectorQuantizer(
            config.codebook_dim,
            config.codebook_size,
            learning=EMA(decay=config.decay) if config.learning == "ema" else Gradient(),
            commitment_weight=config.commitment_weight,
            channel_dim=1,
        )
        self.decoder = Decoder(config)

    def forward(self, x: Tensor) -> VQVAEOutput:
        """One pass; in training mode it also moves the codebook (``learning="ema"``).

        Args:
            x: ``[B, C, ...]`` floating, ``spatial_dims`` axes after the channels.

        Raises:
            ValueError: wrong rank or channels, or an axis that is no multiple of the stride.
        """
        self._check(x)
        quantized, indices, quantizer_loss = self.quantizer(self.encoder(x))
        reconstruction = self.decoder(quantized)
        reconstruction_loss = F.mse_loss(reconstruction, x)
        loss = reconstruction_loss + quantizer_loss
        return VQVAEOutput(reconstruction, indices, loss, reconstruction_loss, quantizer_loss)

    def encode(self, x: Tensor) -> Tensor:
        """The codes of ``x``: ``[B, C, ...] -> int64 [B, ...]``, each axis over the stride."""
        self._check(x)
        indices: Tensor = self.quantizer.encode(self.encoder(x))
        return indices

    def decode(self, indices: Tensor) -> Tensor:
        """The data that codes stand for: ``int64 [B, ...] -> [B, C, ...]``, not clamped.

        Raises:
            ValueError: not one axis per spatial dimension beside the batch.
        """
        wanted = 1 + self.config.spatial_dims
        if indices.ndim != wanted:
            raise ValueError(
                f"indices must have {wanted} dimensions, batch and grid, "
                f"got {_checks.shape(indices)}"
            )
        data: Tensor = self.decoder(self.quantizer.decode(indices))
        return data

    def reconstruct(self, x: Tensor) -> Tensor:
        """``decode(encode(x))``: what the codes keep of ``x``."""
        return self.decode(self.encode(x))

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``config.json`` and ``model.safetensors`` into ``folder``."""
        _pretrained.save(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> VQVAE:
        """The model saved in ``folder``, on the CPU, in eval mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: an unknown key, another format version, tensors of other shapes.
        """
        model = cls(_pretrained.load_config(folder, cls.__name__, VQVAEConfig))
        _pretrained.load_weights(folder, model)
        return model.eval()

    def _check(self, x: Tensor) -> None:
        _checks.floating("x", x)
        config = self.config
        if x.ndim != 2 + config.spatial_dims or x.shape[1] != config.in_channels:
            raise ValueError(
                f"x must be [B, C, ...] with C = {config.in_channels} and "
                f"{config.spatial_dims} axes after it, got {_checks.shape(x)}"
            )
        if any(size % config.stride or size == 0 for size in x.shape[2:]):
            raise ValueError(
                f"each axis of x must be a multiple of the stride {config.stride}, "
                f"got {_checks.shape(x)[2:]}"
            )
