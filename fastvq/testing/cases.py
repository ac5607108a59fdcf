# SPDX-License-Identifier: Apache-2.0
"""Sample inputs of the search, each chosen because some implementation gets it wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# (N, K, D): one of each, primes, one above and below the tiles, D over a tile of channels
SHAPES = (
    (1, 1, 1),
    (0, 5, 4),
    (7, 1, 3),
    (5, 67, 1),
    (33, 16, 2),
    (63, 100, 17),
    (20, 300, 64),
    (129, 140, 100),
    (17, 33, 300),
)


class NearestCase(NamedTuple):
    """A named input of the search: ``make()`` returns x ``[N, D]`` and the codebook ``[K, D]``."""

    name: str
    make: Callable[[], tuple[Tensor, Tensor]]


def gaussian(
    n: int, k: int, d: int, *, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Unit Gaussian vectors ``[N, D]`` and codes ``[K, D]``: the worst case for a certificate."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    return x.to(dtype), torch.randn(k, d, generator=generator).to(dtype)


def clustered(
    n: int, k: int, d: int, *, spread: float = 0.1, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Vectors ``[N, D]`` near the codes ``[K, D]``, as those of a trained model are."""
    generator = torch.Generator().manual_seed(seed)
    codebook = torch.randn(k, d, generator=generator)
    centre = torch.randint(k, (n,), generator=generator)
    return codebook[centre] + spread * torch.randn(n, d, generator=generator), codebook


def channels_first(x: Tensor, height: int, width: int) -> Tensor:
    """The rows of x ``[B * height * width, D]`` as a view of images ``[B, D, height, width]``."""
    images = x.unflatten(0, (-1, height, width)).movedim(-1, 1).contiguous()
    return images.movedim(1, -1)  # [B, height, width, D], channels strided


def _offset(offset: float) -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(40, 64, 32, seed=1)
    return x + offset, codebook + offset


def _scaled(scale: float) -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(40, 64, 32, seed=2)
    return x * scale, codebook * scale


def _duplicates() -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(40, 50, 16, seed=3)
    return x, codebook.repeat(3, 1)


def _one_ulp_apart() -> tuple[Tensor, Tensor]:
    """Pairs of codes that differ in the last bit of one channel."""
    x, codebook = clustered(40, 50, 16, seed=4)
    twin = codebook.clone()
    twin[:, 3] = torch.nextafter(twin[:, 3], torch.tensor(torch.inf))
    return x, torch.stack([codebook, twin], 1).flatten(0, 1)


def _on_the_codes() -> tuple[Tensor, Tensor]:
    """Distance exactly zero: a relative bound leaves no room at all."""
    _, codebook = gaussian(1, 70, 24, seed=5)
    return codebook.flip(0).clone(), codebook


def _midpoints() -> tuple[Tensor, Tensor]:
    """Vectors half-way between two codes, on a lattice where float32 holds everything exactly."""
    codebook = torch.arange(0.0, 128.0, 2.0).unsqueeze(-1).repeat(1, 8)
    return codebook[:-1] + 1, codebook


def _mixed_norms() -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(40, 64, 32, seed=6)
    scales = torch.logspace(-12, 12, 64).unsqueeze(-1)
    return x * torch.logspace(-12, 12, 40).unsqueeze(-1), codebook * scales


def _subnormal() -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(40, 20, 8, seed=7)
    return x * 1e-39, codebook * 1e-39


def _bad_rows() -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(64, 40, 16, seed=8)
    x[3, 5], x[10, 0], x[63, 15] = torch.nan, torch.inf, -torch.inf
    return x, codebook


def _bad_codes() -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(64, 40, 16, seed=9)
    codebook[0, 5], codebook[17, 0], codebook[39, 15] = torch.nan, torch.inf, -torch.inf
    return x, codebook


def _no_good_code() -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(10, 6, 4, seed=10)
    return x, codebook * torch.nan


def _far_outlier() -> tuple[Tensor, Tensor]:
    """One code so far off that the mean of the codes is nowhere near the data."""
    x, codebook = gaussian(40, 64, 32, seed=11)
    codebook[20] = 1e8
    return x, codebook


def _zeros() -> tuple[Tensor, Tensor]:
    x, codebook = gaussian(20, 30, 8, seed=12)
    x[4], codebook[7], codebook[9] = 0, 0, 0
    return x, codebook


NEAREST_CASES = (
    NearestCase("gaussian", lambda: gaussian(140, 130, 48)),
    NearestCase("clustered", lambda: clustered(40, 130, 48)),
    NearestCase("offset_1e2", lambda: _offset(1e2)),
    NearestCase("offset_1e4", lambda: _offset(1e4)),
    NearestCase("offset_1e6", lambda: _offset(1e6)),
    NearestCase("norm_1e-20", lambda: _scaled(1e-20)),
    NearestCase("norm_1e-30", lambda: _scaled(1e-30)),
    NearestCase("norm_1e18", lambda: _scaled(1e18)),
    NearestCase("norm_1e30", lambda: _scaled(1e30)),
    NearestCase("duplicates", _duplicates),
    NearestCase("one_ulp_apart", _one_ulp_apart),
    NearestCase("on_the_codes", _on_the_codes),
    NearestCase("midpoints", _midpoints),
    NearestCase("mixed_norms", _mixed_norms),
    NearestCase("subnormal", _subnormal),
    NearestCase("bad_rows", _bad_rows),
    NearestCase("bad_codes", _bad_codes),
    NearestCase("no_good_code", _no_good_code),
    NearestCase("far_outlier", _far_outlier),
    NearestCase("zeros", _zeros),
)
