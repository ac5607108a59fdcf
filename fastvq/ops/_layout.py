# SPDX-License-Identifier: Apache-2.0
"""How every backend sees its tensors: ``[B, M, H, D]``, as a view wherever one exists."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def canonical(x: Tensor, heads: bool) -> Tensor:
    """Views x ``[..., D]`` (``[..., H, D]`` with heads) as ``[B, M, H, D]``.

    Two leading dimensions are what a channels-first tensor needs to stay a view: images
    ``[B, D, H, W]`` with the channels moved last have rows at ``b * D * H * W + m``. A tensor whose
    leading dimensions do not collapse to two is copied, at O(N D).
    """
    return _two_leading(x if heads else x.unsqueeze(-2), 2)


def canonical_indices(indices: Tensor, heads: bool) -> Tensor:
    """Views indices ``[...]`` or, with heads, ``[..., H]`` as ``[B, M, H]``."""
    return _two_leading(indices if heads else indices.unsqueeze(-1), 1)


def _two_leading(tensor: Tensor, tail: int) -> Tensor:
    """The tensor with two dimensions in the place of those before its last ``tail``."""
    leading, last = tensor.shape[:-tail], tensor.shape[-tail:]
    if len(leading) == 2:
        return tensor
    first, rest = (1, leading) if len(leading) < 2 else (leading[0], leading[1:])
    return tensor.reshape(first, math.prod(rest), *last)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The type in which sums are taken: float64 if any input is, else float32."""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    return torch.float64 if wide else torch.float32


def gather_codes(codebook: Tensor, indices: Tensor) -> Tensor:
    """The code of every index: codebook ``[H, K, D]``, indices ``[B, M, H]`` -> ``[B, M, H, D]``.

    An index of -1 gets code 0, which the caller replaces; an index out of range gets NaN.
    """
    heads, num_codes, _ = codebook.shape
    safe = indices.clamp(0, num_codes - 1)
    codes = codebook[torch.arange(heads, device=codebook.device), safe]
    inside = (indices >= -1) & (indices < num_codes)
    return torch.where(inside.unsqueeze(-1), codes, torch.nan)


def ceil_div(size: int, block: int) -> int:
    """How many blocks cover a size; ``triton.cdiv`` says the same and takes microseconds."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below a size of at least 1."""
    return 1 << (size - 1).bit_length()
