# SPDX-License-Identifier: Apache-2.0
r"""The specification of the lookup, its losses and its gradient.

With :math:`r_n = x_n - c_{i_n}` and V the number of elements of the rows that have a code,

.. math:: \text{loss} = \frac1V \sum_n \lVert r_n \rVert^2, \qquad
          \frac{\partial \text{loss}}{\partial x_n} = \frac2V r_n, \qquad
          \frac{\partial \text{loss}}{\partial c_k} = -\frac2V \sum_n [i_n = k] \, r_n

The commitment loss keeps the first derivative and the codebook loss the second. The straight-
through estimator adds the gradient of the quantized vectors to the first, unchanged. The others
turn it row by row, by what they take for the dependence of q on x and c, everything else constant:

.. math:: \text{rotation:} \quad q = \tfrac{\lVert c \rVert}{\lVert x \rVert} R x, \quad
          R = I - 2 w w^\top + 2 \hat c \hat x^\top, \quad w = \widehat{\hat c + \hat x}

.. math:: \text{diveq:} \quad q = x + \lVert c - x \rVert u, \quad u = \widehat{c - x}

where a hat makes a unit vector. With g the gradient of q, each is a sum
:math:`\alpha g + \beta x + \gamma (x - c)` whose weights are ratios of dot products.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.ops._layout import compute_dtype, gather_codes

# 1 + cos below which x and c count as opposite: there w has no direction left, and is dropped
_OPPOSITE = 2.0**-32


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


def directional_backward(
    grad_quantized: Tensor,
    factor: Tensor,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    gradient: str,
    to_codes: bool,
) -> Tensor:
    """Gradient of x, or of each row's code: the estimator's, plus ``factor * (x - c)``; else 0.

    That of x has its dtype and layout, that of the codes ``[B, M, H, D]`` the computing type's.
    """
    _checks.index_range(indices, codebook.shape[1])
    codes = gather_codes(codebook.double(), indices)
    rows, slope = x.double(), grad_quantized.double()
    weights = (
        _rotation(slope, rows, codes) if gradient == "rotation" else _diveq(slope, rows, codes)
    )
    of_grad, of_x, of_difference = weights
    if to_codes:  # of diveq alone: what x does not get
        of_grad, of_difference = torch.zeros_like(of_grad), -of_difference
    grad = of_grad * slope + of_x * rows + (of_difference + factor.double()) * (rows - codes)
    grad = torch.where((indices >= 0).unsqueeze(-1), grad, 0)
    if to_codes:
        return grad.to(compute_dtype(x, codebook))
    return torch.empty_like(x).copy_(grad)


def _rotation(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of grad, x and x - c; where x is zero, which has no direction, straight through."""
    nothing = x.new_zeros(())
    norm_x, norm_c = (v.square().sum(-1, keepdim=True).sqrt() for v in (x, c))
    turns = norm_x > 0
    inverse = torch.where(turns, 1 / norm_x, nothing)
    unit_c = c * torch.where(norm_c > 0, 1 / norm_c, nothing)
    scale = norm_c * inverse
    cosine = (x * unit_c).sum(-1, keepdim=True) * inverse
    along_x = (x * grad).sum(-1, keepdim=True) * inverse
    along_c = (unit_c * grad).sum(-1, keepdim=True)
    bisects = 1 + cosine > _OPPOSITE
    mean = torch.where(bisects, (along_x + along_c) / (1 + cosine), nothing)
    of_difference = mean * inverse
    of_x = (scale * (2 * along_c - mean) - mean) * inverse
    return torch.where(turns, scale, 1.0), of_x, of_difference


def _diveq(grad: Tensor, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of grad, x and x - c; where x is its code, straight through."""
    difference = x - c
    square = difference.square().sum(-1, keepdim=True)
    along = (difference * grad).sum(-1, keepdim=True) / square
    along = torch.where(square > 0, along, 0.0)
    return torch.ones_like(along), torch.zeros_like(along), -along
