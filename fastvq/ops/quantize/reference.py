# SPDX-License-Identifier: Apache-2.0
r"""The specification of the lookup, its losses and its gradient.

With :math:`r_n = x_n - c_{i_n}` and V the number of elements of the rows that have a code,

.. math:: \text{loss} = \frac1V \sum_n \lVert r_n \rVert^2, \qquad
          \frac{\partial \text{loss}}{\partial x_n} = \frac2V r_n, \qquad
          \frac{\partial \text{loss}}{\partial c_k} = -\frac2V \sum_n [i_n = k] \, r_n

The commitment loss keeps the first derivative and the codebook loss the second. The straight-
through estimator adds the gradient of the quantized vectors to the first, unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import compute_dtype, gather_codes


def quantize(x: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of x ``[B, M, H, D]``, their squared error per element, and 2 / V."""
    _checks.index_range(indices, codebook.shape[1])
    dtype = compute_dtype(x, codebook)
    valid = (indices >= 0).unsqueeze(-1)
    codes = torch.where(valid, gather_codes(codebook.to(dtype), indices), 0)  # [B, M, H, D]
    residual = torch.where(valid, x.to(dtype) - codes, 0)
    elements = valid.sum(dtype=torch.float64) * x.shape[-1]
    loss = residual.square().sum(dtype=torch.float64) / elements.clamp_min(1)
    scale = torch.where(elements > 0, 2.0 / elements.clamp_min(1), 0.0)
    quantized = torch.empty_like(x).copy_(codes)
    return quantized, loss.to(dtype), scale.to(dtype)


def quantize_backward(
    grad_quantized: Tensor, factor: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    """Gradient of x: ``grad_quantized + factor * (x - c)`` where there is a code, else 0."""
    dtype = compute_dtype(x, codebook)
    residual = x.to(dtype) - gather_codes(codebook.to(dtype), indices)
    grad = grad_quantized.to(dtype) + factor.to(dtype) * residual
    grad = torch.where((indices >= 0).unsqueeze(-1), grad, 0)
    return torch.empty_like(x).copy_(grad)
