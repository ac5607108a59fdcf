# SPDX-License-Identifier: Apache-2.0
"""``nearest``: what it promises, its schema, and where its implementations hang."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastvq import _backends, _checks
from fastvq.ops._layout import canonical, compute_dtype

Metric = Literal["euclidean", "cosine", "dot"]
Precision = Literal["exact", "fast"]
METRICS = ("euclidean", "cosine", "dot")
PRECISIONS = ("exact", "fast")


class Nearest(NamedTuple):
    """The chosen codes and how far they are."""

    indices: Tensor
    distances: Tensor


torch.library.define(
    "fastvq::nearest",
    "(Tensor x, Tensor codebook, str metric, str precision) -> (Tensor indices, Tensor distances)",
)


@torch.library.register_fake("fastvq::nearest")
def _fake(x: Tensor, codebook: Tensor, metric: str, precision: str) -> tuple[Tensor, Tensor]:
    shape = x.shape[:-1]
    distances = x.new_empty(shape, dtype=compute_dtype(x, codebook))
    return x.new_empty(shape, dtype=torch.int64), distances


@torch.library.impl("fastvq::nearest", "default")
@torch.no_grad()
def _run(x: Tensor, codebook: Tensor, metric: str, precision: str) -> tuple[Tensor, Tensor]:
    return _backends.resolve("nearest", x)(x, codebook, metric, precision)


_backends.register("nearest", "fastvq.ops.nearest")
_op = torch.ops.fastvq.nearest.default


def nearest(
    x: Tensor,
    codebook: Tensor,
    *,
    metric: Metric = "euclidean",
    precision: Precision = "exact",
) -> Nearest:
    r"""The nearest code of every vector, without ever forming the N x K matrix.

    .. math:: i_n = \operatorname{argmin}_k d(x_n, c_k)

    with :math:`d = \lVert x - c \rVert^2` (``euclidean``), :math:`1 - x \cdot c / (\lVert x \rVert
    \lVert c \rVert)` (``cosine``; 1 where either vector is zero) or :math:`-x \cdot c` (``dot``).

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with a codebook for each of H heads; float32,
            float16, bfloat16 or float64. Any strided view: a channels-first tensor seen through
            ``movedim`` is read in place.
        codebook: codes ``[K, D]`` or ``[H, K, D]``, K >= 1; its dtype need not be that of x.
        metric: ``euclidean``, ``cosine`` or ``dot``.
        precision: ``exact``: the float64 distance of the chosen code is within a relative 1e-5 of
            the smallest one, whatever hardware format did the work. ``fast``: the answer of the
            first pass alone, which may pick a code whose distance is larger by that pass's
            rounding error.

    Returns:
        ``Nearest(indices, distances)``: int64 ``[...]`` and float32 ``[...]`` (float64 if either
        input is), the squared euclidean, cosine or negated dot distance of the chosen code, taken
        from the differences and not from the expanded form. Not differentiable; gradients live in
        :func:`fastvq.ops.quantize`.

    Raises:
        TypeError: an input is not a floating tensor.
        ValueError: shapes, devices, ``metric`` or ``precision`` do not fit.

    Note:
        Ties between bit-equal codes go to the lowest index. A row holding NaN or Inf gets index 0
        and distance NaN; a code holding one is never chosen while a finite one exists.
        Deterministic. Extra memory O(N + K).

    Source: 1711.00937, equations 1 and 2.

    Example:
        >>> import torch, fastvq
        >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
        >>> fastvq.ops.nearest(torch.tensor([[0.9, 0.8]]), codebook)
        Nearest(indices=tensor([1]), distances=tensor([0.0500]))
    """
    _checks.codebook(x, codebook)
    _checks.one_of("metric", metric, METRICS)
    _checks.one_of("precision", precision, PRECISIONS)
    heads = codebook.ndim == 3
    codes = codebook if heads else codebook.unsqueeze(0)  # [H, K, D]
    indices, distances = _op(canonical(x.detach(), heads), codes.detach(), metric, precision)
    shape = x.shape[:-1]
    return Nearest(indices.reshape(shape), distances.reshape(shape))
