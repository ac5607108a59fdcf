# SPDX-License-Identifier: Apache-2.0
"""``statistics``: what it promises, its schema, and where its implementations hang."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastvq import _backends, _checks
from fastvq.ops._layout import canonical, canonical_indices, compute_dtype


class Statistics(NamedTuple):
    """How many vectors each code took, and their sum."""

    counts: Tensor
    sums: Tensor


torch.library.define(
    "fastvq::statistics",
    "(Tensor x, Tensor indices, SymInt num_codes, Tensor? codebook)"
    " -> (Tensor counts, Tensor sums)",
)


@torch.library.register_fake("fastvq::statistics")
def _fake(
    x: Tensor, indices: Tensor, num_codes: int, codebook: Tensor | None
) -> tuple[Tensor, Tensor]:
    heads, channels = x.shape[-2:]
    dtype = compute_dtype(x, codebook)
    counts = x.new_empty((heads, num_codes), dtype=dtype)
    return counts, x.new_empty((heads, num_codes, channels), dtype=dtype)


@torch.library.impl("fastvq::statistics", "default")
@torch.no_grad()
def _run(
    x: Tensor, indices: Tensor, num_codes: int, codebook: Tensor | None
) -> tuple[Tensor, Tensor]:
    return _backends.resolve("statistics", x)(x, indices, num_codes, codebook)


_backends.register("statistics", "fastvq.ops.statistics")
_op = torch.ops.fastvq.statistics.default


def statistics(
    x: Tensor,
    indices: Tensor,
    num_codes: int | tuple[int, int],
    *,
    codebook: Tensor | None = None,
) -> Statistics:
    r"""Counts and sums of the vectors that chose each code, without a one-hot matrix.

    .. math:: n_k = \sum_n [i_n = k], \qquad s_k = \sum_n [i_n = k] \, x_n

    or, with a codebook, the sums of the residuals :math:`\sum_n [i_n = k] (x_n - c_k)`. That is the
    same statistic measured from the code, and keeps its precision when the data lie far from the
    origin.

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with heads; float32, float16, bfloat16 or
            float64; any strided view.
        indices: int64 ``[...]`` or ``[..., H]``, each in ``[0, K)``, or -1 for a vector without a
            code.
        num_codes: K, or ``(H, K)`` when each of H heads has its own codes.
        codebook: ``[K, D]`` or ``[H, K, D]``; sums are then taken of the residuals.

    Returns:
        ``Statistics(counts, sums)``: ``[K]`` and ``[K, D]`` (``[H, K]`` and ``[H, K, D]`` with
        heads) in float32, float64 if an input is.

    Raises:
        TypeError: x is not floating, or the indices are not int64.
        ValueError: shapes or devices do not fit.
        IndexError: (on the CPU) an index is out of range.

    Note:
        Vectors with index -1 and vectors holding a NaN or an Inf are left out of both. On a GPU,
        where a check would have to wait for the device, an index out of range is left out too.
        Deterministic: same inputs, same bits. No float atomics. Extra memory O(N + K).

    Source: 1711.00937, appendix A.1.

    Example:
        >>> import torch, fastvq
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> fastvq.ops.statistics(x, torch.tensor([1, 1, 0]), 3).counts
        tensor([1., 2., 0.])
    """
    _checks.floating("x", x)
    heads = isinstance(num_codes, tuple)
    codes = num_codes[1] if isinstance(num_codes, tuple) else num_codes
    _checks.positive("num_codes", codes)
    wanted = "[..., H, D]" if heads else "[..., D]"
    if x.ndim < 1 + heads:
        raise ValueError(f"x must be {wanted}, got {_checks.shape(x)}")
    if isinstance(num_codes, tuple) and x.shape[-2] != num_codes[0]:
        raise ValueError(
            f"x must be [..., H, D] with H = {num_codes[0]}, the first of num_codes, "
            f"got {_checks.shape(x)}"
        )
    _checks.indices(indices, x)
    if codebook is not None:
        _checks.codebook(x, codebook)
        shape = [*num_codes] if isinstance(num_codes, tuple) else [num_codes]
        if list(codebook.shape[:-1]) != shape:
            raise ValueError(
                f"codebook must be {[*shape, x.shape[-1]]} for num_codes = {num_codes}, "
                f"got {_checks.shape(codebook)}"
            )
        codebook = (codebook if heads else codebook.unsqueeze(0)).detach()
    counts, sums = _op(
        canonical(x.detach(), heads), canonical_indices(indices, heads), codes, codebook
    )
    return Statistics(counts, sums) if heads else Statistics(counts[0], sums[0])
