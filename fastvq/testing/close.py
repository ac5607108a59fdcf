# SPDX-License-Identifier: Apache-2.0
"""Comparisons that know what the ops promise. They form N x K: for tests, not for models."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import ops

# what `nearest` promises of the chosen code, and what float32 sums of squares keep of the distance
NEAREST_BUDGET = 1e-5
# elements of the comparison of codes with codes
_WORKSPACE = 1 << 24


@torch.no_grad()
def exact_distances(x: Tensor, codebook: Tensor, metric: str = "euclidean") -> Tensor:
    """Float64 distances ``[N, K]`` of x ``[N, D]`` to the codebook ``[K, D]``.

    Direct differences or products, written apart from the reference so that the two can disagree.
    A code holding NaN or Inf is at distance Inf.
    """
    wide, codes = x.double(), codebook.double()
    # written in place: columns kept between large temporaries make malloc fragment without bound
    distances = wide.new_empty((codes.shape[0], wide.shape[0]))
    for row, code in zip(distances, codes, strict=True):
        row.copy_(_column(wide, code, metric))
    distances = distances.t()
    return torch.where(torch.isfinite(codes).all(-1), distances, torch.inf)


def wrong_codes(x: Tensor, codebook: Tensor, indices: Tensor, metric: str = "euclidean") -> Tensor:
    """Which rows of x ``[N, D]`` got a code that breaks the promise: bool ``[N]``."""
    distances = exact_distances(x, codebook, metric)
    chosen = distances.gather(-1, indices.unsqueeze(-1)).squeeze(-1)
    best = distances.amin(-1)
    good_row = torch.isfinite(x).all(-1) & torch.isfinite(best)
    resolution = _float64_resolution(x, codebook[indices], chosen, metric)
    too_far = chosen - best > NEAREST_BUDGET * best.abs() + resolution
    # the first of the codes that are bit-equal to the chosen one
    parts = codebook[indices].split(max(1, _WORKSPACE // codebook.numel()))
    first = [(codebook == part.unsqueeze(1)).all(-1).int().argmax(-1) for part in parts]
    not_first = torch.cat(first) != indices
    return torch.where(good_row, too_far | not_first, indices != 0)


def assert_nearest(
    x: Tensor, codebook: Tensor, result: ops.Nearest, metric: str = "euclidean"
) -> None:
    """Asserts everything that ``nearest`` promises of x ``[N, D]`` and codebook ``[K, D]``."""
    indices, distances = result
    assert indices.dtype == torch.int64
    assert indices.shape == distances.shape == x.shape[:-1]
    if not x.shape[0]:
        return
    assert int(indices.min()) >= 0
    assert int(indices.max()) < codebook.shape[0]
    wrong = wrong_codes(x, codebook, indices, metric)
    assert not wrong.any(), f"{int(wrong.sum())} of {len(x)} rows got a wrong code"
    exact = exact_distances(x, codebook, metric).gather(-1, indices.unsqueeze(-1)).squeeze(-1)
    bad_row = ~torch.isfinite(x).all(-1) | ~torch.isfinite(codebook).all(-1).any()
    expected = torch.where(bad_row, torch.nan, exact)
    # a dot product cancels, so its error is relative to the terms and not to their sum
    floor = _float64_resolution(x, codebook[indices], exact, metric)
    if metric == "dot":
        floor = floor * 2.0**29  # taken in float32, whose unit is 2^-24
    assert_within(distances, expected, NEAREST_BUDGET * expected.abs() + floor)


def assert_within(actual: Tensor, expected: Tensor, budget: Tensor | float) -> None:
    """Asserts ``|actual - expected| <= budget`` element by element; NaN matches NaN.

    ``expected`` is first rounded to the range of ``actual``, so that an overflow to Inf and the
    subnormals of the narrower type are not held against it.
    """
    info = torch.finfo(actual.dtype)
    rounded = expected.to(actual.dtype).double()
    difference = (actual.double() - rounded).abs()
    same = (actual.double() == rounded) | (actual.isnan() & rounded.isnan())
    allowed = torch.as_tensor(budget, dtype=torch.float64) + info.smallest_normal
    bad = ~same & ~(difference <= allowed)
    assert not bad.any(), (
        f"{int(bad.sum())} of {bad.numel()} elements beyond the budget; the worst differs by "
        f"{difference[bad].max():.3g}"
    )


def _float64_resolution(x: Tensor, codes: Tensor, distances: Tensor, metric: str) -> Tensor:
    """What float64 itself cannot tell apart: error bound ``[N]`` of :func:`exact_distances`."""
    unit = (x.shape[-1] + 4) * 2.0**-53
    if metric == "dot":
        return unit * (x.double() * codes.double()).abs().sum(-1)
    if metric == "cosine":
        # each unit vector is off by some units, so a distance of r^2 / 2 by r units and units^2
        return unit * (2 * distances).sqrt() + unit**2
    return torch.zeros_like(distances)


def _column(x: Tensor, code: Tensor, metric: str) -> Tensor:
    if metric == "euclidean":
        return (x - code).square().sum(-1)
    if metric == "dot":
        return -(x * code).sum(-1)
    # |x/|x| - c/|c||^2 / 2 is 1 - cos without its cancellation
    norms = x.norm(dim=-1), code.norm()
    unit = x / norms[0].unsqueeze(-1), code / norms[1]
    distance = (unit[0] - unit[1]).square().sum(-1) / 2
    return torch.where((norms[0] == 0) | (norms[1] == 0), 1.0, distance)
