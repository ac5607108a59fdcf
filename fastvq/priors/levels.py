# SPDX-License-Identifier: Apache-2.0
"""The prior of a lower level of a hierarchy, given the codes of the levels above.

Source: Razavi et al. 2019, "Generating Diverse High-Fidelity Images with VQ-VAE-2",
https://arxiv.org/abs/1906.00446, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastvq import _checks
from fastvq.priors.base import Context, Prior, PriorConfig, Stepper, check_int64, check_range
from fastvq.priors.kinds import prior_class

_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class LevelContextConfig:
    """The shape of a :class:`LevelContext`.

    Args:
        codebook_sizes: number of codes of each level above, the top first.
        grid_dims: axes of every grid: 1, 2 or 3.
        channels: width of the residual stacks.
        layers: residual layers of each stack. VQ-VAE-2 has 20.
        kernel_size: odd width of their convolutions along every axis.
        dropout: probability of dropping a channel of what a residual layer adds, in training.

    Raises:
        TypeError, ValueError: a count below 1, no level above, an even kernel, other axes.
    """

    codebook_sizes: tuple[int, ...]
    grid_dims: int = 2
    channels: int = 64
    layers: int = 4
    kernel_size: int = 3
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for size in self.codebook_sizes:
            _checks.positive("each of codebook_sizes", size)
        for name in ("channels", "layers", "kernel_size"):
            _checks.positive(name, getattr(self, name))
        _checks.fraction("dropout", self.dropout)
        if not self.codebook_sizes:
            raise ValueError("codebook_sizes must name at least one level above, got none")
        if self.grid_dims not in _CONVOLUTIONS:
            raise ValueError(f"grid_dims must be 1, 2 or 3, got {self.grid_dims}")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}")


@dataclass(frozen=True)
class LevelPriorConfig:
    """The shape of a :class:`LevelPrior`.

    Args:
        prior: of the level itself, with ``context_channels``.
        above: what is made of the levels above.

    Raises:
        TypeError: ``prior`` is not the config of a prior.
        ValueError: it takes no context.
    """

    prior: PriorConfig
    above: LevelContextConfig

    def __post_init__(self) -> None:
        grid_dims = prior_class(self.prior).grid_dims
        if not self.prior.context_channels:
            raise ValueError("context_channels must be at least 1 in the prior of a level, got 0")
        if grid_dims not in (None, self.above.grid_dims):
            raise ValueError(
                f"grid_dims must be that of the prior, {grid_dims}, got {self.above.grid_dims}"
            )

    @property
    def codebook_size(self) -> int:
        """K of the level itself."""
        return self.prior.codebook_size

    @property
    def num_classes(self) -> int | None:
        """Classes to condition on."""
        return self.prior.num_classes

    @property
    def label_dropout(self) -> float:
        """Probability of hiding a label in training."""
        return self.prior.label_dropout


class _Residual(nn.Module):
    """``x + W silu(V * silu(x))``: a convolution V that keeps the size, and a 1x1 convolution W."""

    def __init__(self, config: LevelContextConfig) -> None:
        super().__init__()
        convolution, channels = _CONVOLUTIONS[config.grid_dims], config.channels
        self.inner = convolution(channels, channels, config.kernel_size, padding="same")
        self.out = convolution(channels, channels, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.out(F.silu(self.inner(F.silu(x)))))


class LevelContext(nn.Module):
    """The codes of the levels above as features of the positions of a level.

    The codes of each level are embedded and run through a deep stack of residual convolutions of
    their own grid; the results, repeated to the finer grid, are summed, and one convolution of
    that grid tells the positions apart that share a coarse code.

    Args:
        config: see :class:`LevelContextConfig`.
        context_channels: channels of the features.
    """

    def __init__(self, config: LevelContextConfig, context_channels: int) -> None:
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleList(
            nn.Embedding(size, config.channels) for size in config.codebook_sizes
        )
        self.stacks = nn.ModuleList(
            nn.Sequential(*(_Residual(config) for _ in range(config.layers)))
            for _ in config.codebook_sizes
        )
        self.out = _CONVOLUTIONS[config.grid_dims](
            config.channels, context_channels, max(3, config.kernel_size), padding="same"
        )

    def forward(self, grids: Context | None, batch: int, shape: Sequence[int]) -> Tensor:
        """Features ``[B, context_channels, *shape]``.

        Args:
            grids: tuple of int64 ``[B, *shape_above]``, the top level first; along each axis the
                size divides that of ``shape``.
            batch: B.
            shape: of the grid that the features are for.

        Raises:
            TypeError, ValueError: another number of grids; a wrong rank, dtype, size, device or
                range of one.
        """
        checked = self._checked(grids, batch, shape)
        summed = []
        for grid, embedding, stack in zip(checked, self.embeddings, self.stacks, strict=True):
            features = stack(embedding(grid).movedim(-1, 1))
            for axis, size in enumerate(shape, start=2):
                features = features.repeat_interleave(size // features.shape[axis], dim=axis)
            summed.append(features)
        return self.out(F.silu(torch.stack(summed).sum(0)))

    def _checked(
        self, grids: Context | None, batch: int, shape: Sequence[int]
    ) -> tuple[Tensor, ...]:
        sizes = self.config.codebook_sizes
        if not isinstance(grids, tuple):
            got = "none" if grids is None else type(grids).__name__
            raise TypeError(
                f"context must be a tuple of the {len(sizes)} grids of codes above, got {got}"
            )
        if len(grids) != len(sizes):
            raise ValueError(f"context must hold {len(sizes)} grids of codes, got {len(grids)}")
        weight = next(self.parameters())
        for level, (grid, size) in enumerate(zip(grids, sizes, strict=True)):
            name = f"context[{level}]"
            check_int64(name, grid)
            fits = len(grid) == batch and grid.ndim == 1 + len(shape) and 0 not in grid.shape[1:]
            if not fits or any(s % g for s, g in zip(shape, grid.shape[1:], strict=True)):
                raise ValueError(
                    f"{name} must be [B, *shape_above] with B = {batch} and sizes that divide "
                    f"{list(shape)}, got {list(grid.shape)}"
                )
            _checks.same_device(name, grid, "the prior", weight)
            check_range(name, grid, "K", size)
        return grids


class LevelPrior(Prior):
    r"""The prior of a level given the codes of the levels above, of any number.

    .. math:: p(z) = \prod_t p(z_t \mid z_1, \dots, z_{t-1}, \text{label}, \text{levels above})

    Any prior that takes a context, given that of a :class:`LevelContext`. Its ``context`` is the
    tuple of grids of codes, int64 ``[B, *shape_above]``, the top level first.

    Args:
        config: see :class:`LevelPriorConfig`.

    Example:
        >>> from fastvq.priors import PixelSNAILConfig
        >>> prior = PixelSNAILConfig(codebook_size=64, context_channels=32, attention_heads=0)
        >>> level = LevelPrior(LevelPriorConfig(prior, LevelContextConfig(codebook_sizes=(512,))))
        >>> top, codes = torch.randint(512, (8, 4, 4)), torch.randint(64, (8, 8, 8))
        >>> level(codes, context=(top,)).shape
        torch.Size([8, 8, 8, 64])
    """

    config: LevelPriorConfig  # type: ignore[assignment]  # it passes on what the base asks for

    def __init__(self, config: LevelPriorConfig) -> None:
        super().__init__(config.prior)
        self.config = config
        self.above = LevelContext(config.above, config.prior.context_channels)
        self.prior = prior_class(config.prior)(config.prior)

    @property
    def reach(self) -> float:
        """How far a logit can see in the grid of its own level: as the prior inside."""
        return self.prior.reach

    def forward(
        self, codes: Tensor, labels: Tensor | None = None, context: Context | None = None
    ) -> Tensor:
        """See :meth:`Prior.forward`."""
        self.prior.check_codes(codes)
        features = self.above(context, codes.shape[0], codes.shape[1:])
        return self.prior(codes, labels, features)

    def stepper(
        self,
        batch: int,
        shape: Sequence[int],
        labels: Tensor | None = None,
        context: Context | None = None,
    ) -> Stepper:
        """See :meth:`Prior.stepper`; the features are computed once."""
        self.check_evaluating()
        shape = self.prior.checked_shape(shape)
        with torch.no_grad():
            features = self.above(context, batch, shape)
        return self.prior.stepper(batch, shape, labels, features)
