# SPDX-License-Identifier: Apache-2.0
"""What the streams are given: checked, heads first, in one dtype, and finite."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import canonical, compute_dtype

Metric = Literal["euclidean", "cosine", "dot"]
METRICS = ("euclidean", "cosine", "dot")


class Prepared(NamedTuple):
    """Inputs as the streams want them, with what was not finite replaced and remembered."""

    x: Tensor  # [H, N, D], unit vectors for cosine
    codebook: Tensor  # [H, K, D], likewise
    codes: Tensor | None  # [H, K, D], as given where the codebook is not
    bias: Tensor  # [H, K], 0 or -inf
    finite: Tensor  # [H, N]
    metric: str


def prepare(x: Tensor, codebook: Tensor, metric: Metric, inverse_temperature: float) -> Prepared:
    _checks.codebook(x, codebook)
    _checks.one_of("metric", metric, METRICS)
    if isinstance(inverse_temperature, bool) or not isinstance(inverse_temperature, int | float):
        kind = type(inverse_temperature).__name__
        raise TypeError(f"inverse_temperature must be a number, got {kind}")
    if not 0 < inverse_temperature < float("inf"):
        raise ValueError(
            f"inverse_temperature must be above 0 and finite, got {inverse_temperature:g}"
        )
    heads = codebook.ndim == 3
    dtype = compute_dtype(x, codebook)
    rows = heads_first(canonical(x, heads)).to(dtype)
    codes = (codebook if heads else codebook.unsqueeze(0)).to(dtype)
    finite, alive = torch.isfinite(rows).all(-1), torch.isfinite(codes).all(-1)
    rows = torch.where(finite.unsqueeze(-1), rows, 0).contiguous()
    codes = torch.where(alive.unsqueeze(-1), codes, 0).contiguous()
    bias = torch.zeros_like(alive, dtype=dtype).masked_fill(~alive, -torch.inf)
    if metric != "cosine":
        return Prepared(rows, codes, None, bias, finite, metric)
    return Prepared(_unit(rows), _unit(codes), codes, bias, finite, "dot")


def heads_first(canonical: Tensor) -> Tensor:
    """``[B, M, H, ...]`` as ``[H, B M, ...]``."""
    return canonical.flatten(0, 1).movedim(1, 0)


def _unit(rows: Tensor) -> Tensor:
    """Unit vectors, zero where a vector was; scaled first so that no square underflows."""
    largest = rows.detach().abs().amax(-1, keepdim=True)
    zero = largest == 0
    rows = rows / torch.where(zero, 1, largest)
    squares = rows.square().sum(-1, keepdim=True)
    return rows / torch.where(zero, 1, squares).sqrt()
