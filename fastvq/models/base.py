# SPDX-License-Identifier: Apache-2.0
"""What is the same for every VQ-VAE on the way from data to codes."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from fastvq import _checks, _pretrained

# what a model calls its codes: one grid of indices, or the grids of all levels
Indices = TypeVar("Indices", Tensor, tuple[Tensor, ...])


class Bits(NamedTuple):
    """Bits per value of each example, float ``[B]``: ``total = reconstruction + codes``.

    Attributes:
        total: a bound from above on ``-log2 p(x)`` per value.
        reconstruction: ``-log2 p(x | codes)`` per value.
        codes: bits of the codes, per value of the data.
    """

    total: Tensor
    reconstruction: Tensor
    codes: Tensor


class Coder(nn.Module, ABC, Generic[Indices]):
    """Data to grids of codes: what all models share, whatever decodes them.

    The codes of any model are a tuple of grids, **the top (coarsest) first**, each int64
    ``[B, *grid]``, or ``[B, *grid, G]`` where ``config.codebooks`` G is above 1. `encode_grids`,
    `level_codebook_sizes`, `grid_shapes` and `nominal_bits` speak of them uniformly; ``encode`` and
    ``decode`` of a class do so in its own way, one grid being a tensor and several a tuple.
    """

    config_class: ClassVar[type]
    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @property
    @abstractmethod
    def level_strides(self) -> tuple[tuple[int, ...], ...]:
        """Samples of the data per code, in every axis, of every level, the top first."""

    @property
    def level_codebook_sizes(self) -> tuple[int, ...]:
        """Codes K of a codebook, of every level, the top first."""
        return (self.config.codebook_size,) * len(self.level_strides)

    @abstractmethod
    def encode(self, x: Tensor) -> Indices:
        """The codes of ``x``."""

    @abstractmethod
    def _encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """The grids of checked data; changes nothing."""

    def encode_grids(self, x: Tensor) -> tuple[Tensor, ...]:
        """The codes of ``x`` as grids, the top first."""
        self._check(x)
        return self._encode(x)

    def grid_shapes(self, *size: int) -> tuple[tuple[int, ...], ...]:
        """Shapes of the indices of data of a size, without the batch, the top first.

        Example:
            >>> from fastvq.models import VQVAE, VQVAEConfig
            >>> VQVAE(VQVAEConfig(strides=(2, 2), codebooks=4)).grid_shapes(32, 24)
            ((8, 6, 4),)
        """
        self._check_size(size)
        groups: tuple[int, ...] = () if self.config.codebooks == 1 else (self.config.codebooks,)
        return tuple(_over(size, stride) + groups for stride in self.level_strides)

    def nominal_bits(self, *size: int) -> float:
        """Bits of the codes of one example of a size under a uniform prior.

        The sum over levels of ``G log2 K`` for each position of the grid.
        """
        levels = zip(self.grid_shapes(*size), self.level_codebook_sizes, strict=True)
        return sum(math.prod(shape) * math.log2(codes) for shape, codes in levels)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``config.json`` and ``model.safetensors`` into ``folder``."""
        _pretrained.save(folder, self, self.config)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Self:
        """The model saved in ``folder``, on the CPU, in eval mode.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: an unknown key, another format version, tensors of other shapes.
        """
        model = cls(_pretrained.load_config(folder, cls.__name__, cls.config_class))
        _pretrained.load_weights(folder, model)
        return model.eval()

    def _bits(self, nats: Tensor, x: Tensor, code_bits: Tensor | float | None) -> Bits:
        """The bound, from nats per value ``[B]`` and the bits of the codes of each example."""
        reconstruction = nats / math.log(2)
        if code_bits is None:
            code_bits = self.nominal_bits(*x.shape[2:])
        bits = torch.as_tensor(code_bits, device=x.device).to(reconstruction.dtype)
        if bits.ndim and bits.shape != x.shape[:1]:
            raise ValueError(
                f"code_bits must be a number or [B] with B = {x.shape[0]}, "
                f"got {_checks.shape(bits)}"
            )
        codes = (bits / math.prod(x.shape[1:])).expand(x.shape[0])
        return Bits(reconstruction + codes, reconstruction, codes)

    def _check(self, x: Tensor) -> None:
        _checks.floating("x", x)
        config = self.config
        if x.ndim != 2 + config.spatial_dims or x.shape[1] != config.in_channels:
            raise ValueError(
                f"x must be [B, C, ...] with C = {config.in_channels} and "
                f"{config.spatial_dims} axes after it, got {_checks.shape(x)}"
            )
        self._check_size(x.shape[2:])

    def _check_size(self, size: tuple[int, ...]) -> None:
        stride = self.level_strides[0]
        if len(size) != len(stride):
            raise ValueError(f"size must have {len(stride)} axes, got {list(size)}")
        if any(n % s or n == 0 for n, s in zip(size, stride, strict=True)):
            wanted = stride[0] if len(set(stride)) == 1 else list(stride)
            raise ValueError(
                f"each axis of x must be a multiple of the stride {wanted}, got {list(size)}"
            )

    def _check_grids(self, grids: tuple[Tensor, ...]) -> None:
        strides = self.level_strides
        if not isinstance(grids, tuple) or len(grids) != len(strides):
            got = len(grids) if isinstance(grids, tuple) else type(grids).__name__
            raise ValueError(f"grids must be a tuple of {len(strides)}, the top first, got {got}")
        grouped: bool = self.config.codebooks > 1
        wanted = 1 + self.config.spatial_dims + grouped
        for indices in grids:
            if indices.ndim != wanted:
                raise ValueError(
                    f"indices must have {wanted} dimensions, batch and grid"
                    f"{' and codebooks' * grouped}, got {_checks.shape(indices)}"
                )
        # the batch, and the size of the data that each level stands for
        fit = {
            indices.shape[:1] + _times(indices.shape[1 : wanted - grouped], stride)
            for indices, stride in zip(grids, strides, strict=True)
        }
        if len(fit) > 1:
            shapes = ", ".join(str(_checks.shape(indices)) for indices in grids)
            raise ValueError(f"grids must be of one batch and one size of the data, got {shapes}")


def _over(size: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n // s for n, s in zip(size, stride, strict=True))


def _times(grid: tuple[int, ...], stride: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(n * s for n, s in zip(grid, stride, strict=True))
