# SPDX-License-Identifier: Apache-2.0
"""The hierarchical VQ-VAE-2 (arXiv 1906.00446)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from fastvq import _checks
from fastvq.models import blocks, networks
from fastvq.models._offers import Quantizer
from fastvq.models.autoencoder import AutoEncoder, AutoEncoderConfig, Pass
from fastvq.models.networks import Decoder, Encoder
from fastvq.models.quantizers import QuantizerConfig, make_quantizer


@dataclass(frozen=True, kw_only=True)
class VQVAE2Config(AutoEncoderConfig):
    """All that defines a `VQVAE2`; the levels differ in strides and number of codes alone.

    Attributes:
        strides: for each level, **the finest first**, the downsampling of each of its stages on top
            of the level before: the paper's 64x64 and 32x32 codes of 256x256 images are
            ``((2, 2), (2,))``. Two levels or more.
        time_strides: of video, the same in time, where it is not as in space.
        codebook_sizes: codes K of each level, the finest first too, in place of ``codebook_size``,
            which is then left at its default; ``None`` for ``codebook_size`` at each. Not for
            ``fsq`` and ``residual_fsq``, whose ``fsq_levels`` say it.

    Note:
        Codes of an upper level that stay unused long after the start are a sign that
        ``commitment_weight`` is too large for the reconstruction loss: try a fifth of it.
    """

    strides: tuple[tuple[int, ...], ...] = ((2, 2), (2,))
    time_strides: tuple[tuple[int, ...], ...] | None = None
    codebook_sizes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.codebook_sizes is not None:
            _checks.instance("codebook_sizes", self.codebook_sizes, tuple)
            # before a codebook_size that was rightly left alone is found not to be the product
            if self.fsq_levels is not None:
                raise ValueError(
                    "codebook_sizes must be None where fsq_levels is given, "
                    f"got {self.codebook_sizes}"
                )
        super().__post_init__()
        if len(self.strides) < 2:
            raise ValueError(
                f"strides must have two levels or more, got {len(self.strides)}; a VQVAE has one"
            )
        if self.time_strides is not None and len(self.time_strides) != len(self.strides):
            raise ValueError(
                f"time_strides must have {len(self.strides)} levels as strides has, "
                f"got {len(self.time_strides)}"
            )
        self.stages()
        if self.codebook_sizes is not None:
            self._check_codebook_sizes(self.codebook_sizes)

    def _check_codebook_sizes(self, sizes: tuple[int, ...]) -> None:
        if len(sizes) != len(self.strides):
            raise ValueError(
                f"codebook_sizes must have {len(self.strides)} levels as strides has, "
                f"got {len(sizes)}"
            )
        default = type(self).codebook_size
        if self.codebook_size != default:
            raise ValueError(
                f"codebook_size must be left at {default} where codebook_sizes is given, "
                f"got {self.codebook_size}"
            )
        for size in sizes:
            _checks.positive("each of codebook_sizes", size)
        # what else a quantizer asks of its size
        try:
            self.quantizer_configs()
        except ValueError as error:
            raise ValueError(f"each of codebook_sizes: {error}") from error

    def quantizer_configs(self) -> Sequence[QuantizerConfig]:
        """What the quantizer of every level is made of, the finest level first."""
        if self.codebook_sizes is None:
            return [self] * len(self.strides)
        return [
            replace(self, codebook_size=size, codebook_sizes=None) for size in self.codebook_sizes
        ]

    def stages(self) -> list[list[tuple[int, ...]]]:
        """The stride of every axis at every stage of every level, the finest level first."""
        times = self.time_strides or (None,) * len(self.strides)
        return [
            networks.axis_strides(self.spatial_dims, strides, time)
            for strides, time in zip(self.strides, times, strict=True)
        ]

    @property
    def stride(self) -> tuple[int, ...]:
        """Samples of the data per code of the top, in every axis; what sizes must be multiples of.

        The products of all strides of all levels.
        """
        return networks.total_stride([stage for level in self.stages() for stage in level])


class VQVAE2(AutoEncoder[tuple[Tensor, ...]]):
    r"""Codes at several resolutions: the coarse ones say what, the fine ones how exactly.

    Encoders run from the finest level up, :math:`f_1 = E_1(x)`, :math:`f_{l+1} = E_{l+1}(f_l)`.
    Codes are chosen from the top level n down:

    .. math:: h_n &= q_n = Q_n(P_n f_n) \\
              q_l &= Q_l(P_l [f_l, D_{l+1}(h_{l+1})]), \qquad h_l = [q_l, U_{l+1}(h_{l+1})] \\
              \hat x &= D_1(h_1)

    with 1-wide convolutions P, quantizers Q, decoders D that end at the resolution of the level
    below, and transposed convolutions U that bring the codes of all levels above there. So each
    level codes what those above it leave open, and the last decoder sees them all. The loss is that
    of a `VQVAE` with the sum of the losses of all quantizers, and gradients are copied straight
    through each of them into what it quantized, the decoded upper levels included.

    Codes are a tuple of grids, **the top first**, each int64 ``[B, *grid]`` (``[B, *grid, G]`` with
    several codebooks). Sizes and determinism are as for `VQVAE`.

    Source: 1906.00446, section 3.1 and figure 2.

    Example:
        >>> import torch
        >>> model = VQVAE2(VQVAE2Config(in_channels=3, codebook_size=512))
        >>> images = torch.rand(2, 3, 32, 24)
        >>> top, bottom = model.encode(images)
        >>> top.shape, bottom.shape
        (torch.Size([2, 4, 3]), torch.Size([2, 8, 6]))
        >>> model.decode((top, bottom)).shape
        torch.Size([2, 3, 32, 24])
    """

    config_class: ClassVar = VQVAE2Config
    config: VQVAE2Config

    def __init__(self, config: VQVAE2Config) -> None:
        super().__init__(config)
        dims, hidden, stages = config.spatial_dims, config.hidden_channels, config.stages()
        quantizers = config.quantizer_configs()
        codes = [each.code_channels for each in quantizers]
        below = range(len(stages) - 1)
        data = config.in_channels
        outputs = [self.likelihood.parameter_channels(data)] + [hidden for _ in below]
        # channels of the codes of a level and all above it
        gathered = [sum(codes[level:]) for level in range(len(stages))]
        # lists run from the finest level up, as encoders do
        self.encoders = nn.ModuleList(
            Encoder(config, channels, strides)
            for channels, strides in zip([data, *(hidden for _ in below)], stages, strict=True)
        )
        self.projections = nn.ModuleList(
            blocks.convolution(dims, channels, out, 1)
            for channels, out in zip([*(2 * hidden for _ in below), hidden], codes, strict=True)
        )
        self.quantizers = nn.ModuleList(make_quantizer(each) for each in quantizers)
        self.decoders = nn.ModuleList(
            Decoder(config, channels, strides, out)
            for channels, strides, out in zip(gathered, stages, outputs, strict=True)
        )
        # of each level but the top, what brings the codes above down to it
        self.upsamplers = nn.ModuleList(
            nn.Sequential(
                *(
                    blocks.up(dims, gathered[level + 1], gathered[level + 1], stride)
                    for stride in reversed(stages[level + 1])
                )
            )
            for level in below
        )

    @property
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Samples per code in every axis, of every level, the top first."""
        stages: list[tuple[int, ...]] = []
        found = []
        for level in self.config.stages():
            stages += level
            found.append(networks.total_stride(stages))
        return tuple(reversed(found))

    @property
    def level_codebook_sizes(self) -> tuple[int, ...]:
        """Codes K of each level, **the top first**; ``config.codebook_sizes`` is finest first."""
        sizes = self.config.codebook_sizes
        return super().level_codebook_sizes if sizes is None else sizes[::-1]

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The codes of ``x``, the grids of all levels, the top first."""
        return self.encode_grids(x)

    def decode(self, indices: tuple[Tensor, ...]) -> Tensor:
        """The data that grids stand for, the top first: ``[B, C, ...]``, the mean.

        Raises:
            ValueError: another number of grids, or grids that do not belong together.
        """
        return self.decode_grids(indices)

    def _pass(self, x: Tensor) -> Pass:
        grids, losses = [], []
        gathered: Tensor | None = None
        for level, features in self._features(x):
            vectors = self._vectors(level, features, gathered)
            quantized, indices, loss = self._quantizer(level)(vectors)
            gathered = self._gathered(level, quantized, gathered)
            grids.append(indices)
            losses.append(loss)
        return Pass(self.decoders[0](gathered), tuple(grids), torch.stack(losses).sum())

    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        grids = []
        gathered: Tensor | None = None
        for level, features in self._features(x):
            quantizer = self._quantizer(level)
            grids.append(quantizer.encode(self._vectors(level, features, gathered)))
            if level > 0:
                gathered = self._gathered(level, quantizer.decode(grids[-1]), gathered)
        return tuple(grids)

    def _decode(self, grids: tuple[Tensor, ...]) -> Tensor:
        gathered: Tensor | None = None
        for level, indices in zip(reversed(range(len(grids))), grids, strict=True):
            gathered = self._gathered(level, self._quantizer(level).decode(indices), gathered)
        data: Tensor = self.decoders[0](gathered)
        return data

    def _vectors(self, level: int, features: Tensor, above: Tensor | None) -> Tensor:
        """What a level quantizes: its features, and what the codes above say about them."""
        if above is not None:
            features = torch.cat([features, self.decoders[level + 1](above)], 1)
        vectors: Tensor = self.projections[level](features)
        return vectors

    def _gathered(self, level: int, codes: Tensor, above: Tensor | None) -> Tensor:
        """The codes of a level and those above it, at its resolution."""
        if above is None:
            return codes
        return torch.cat([codes, self.upsamplers[level](above)], 1)

    def _indices(self, grids: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return grids

    def _quantizer(self, level: int) -> Quantizer:
        return cast(Quantizer, self.quantizers[level])

    def _features(self, x: Tensor) -> Sequence[tuple[int, Tensor]]:
        """The levels from the top down, each with its encoder's features."""
        found = []
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            found.append((level, x))
        return found[::-1]
