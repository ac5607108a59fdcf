# SPDX-License-Identifier: Apache-2.0
r"""The specification of residual quantization: the loop over its levels.

.. math:: r_1 = x, \qquad i_q = \arg\min_k \lVert r_q - c_{q,k} \rVert, \qquad
          r_{q+1} = r_q - c_{q,i_q}, \qquad \hat x = \sum_q c_{q,i_q}

in float32 (float64 if an input is), sums in the order of the levels. With :math:`V_q` the number of
elements of the rows that have a code at level q,

.. math:: L_q = \frac1{V_q} \sum_n \lVert r_{q+1,n} \rVert^2, \qquad
          \frac{\partial L_q}{\partial x_n} = \frac2{V_q} r_{q+1,n}, \qquad
          \frac{\partial L_q}{\partial c_{q,k}} = -\frac2{V_q} \sum_n [i_{q,n} = k] \, r_{q+1,n}

where a residual counts the codes of the levels before it as constants: each level pulls its own
code and x, and no other code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq.ops._layout import compute_dtype


def residual(
    x: Tensor, codebooks: Tensor, levels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The sum of codes ``[B, M, D]``, indices ``[B, M, Q]``, and ``[Q]`` losses and 2 / V.

    x is ``[B, M, D]``, codebooks ``[Q, K, D]``; a row takes the first ``levels [B, M]`` levels.
    """
    dtype = compute_dtype(x, codebooks)
    rest = x.to(dtype)
    quantized = torch.zeros_like(rest)
    indices, losses, scales = [], [], []
    for q, codebook in enumerate(codebooks):
        # through the dispatcher: ops are siblings, and siblings do not import each other
        found, _ = torch.ops.fastvq.nearest.default(
            rest.unsqueeze(2), codebook.unsqueeze(0), "euclidean", "exact"
        )
        index = found.squeeze(2)
        if levels is not None:
            index = torch.where(levels > q, index, -1)
        used = (index >= 0).unsqueeze(-1)
        code = torch.where(used, codebook.to(dtype)[index.clamp_min(0)], 0)
        rest = rest - code
        quantized = quantized + code
        elements = used.sum(dtype=torch.float64) * x.shape[-1]
        squares = torch.where(used, rest.square(), 0).sum(dtype=torch.float64)
        losses.append(squares / elements.clamp_min(1))
        scales.append(torch.where(elements > 0, 2.0 / elements.clamp_min(1), 0.0))
        indices.append(index)
    loss, scale = torch.stack(losses).to(dtype), torch.stack(scales).to(dtype)
    return quantized, torch.stack(indices, -1), loss, scale


def residual_backward(
    grad_quantized: Tensor, factors: Tensor, x: Tensor, codebooks: Tensor, indices: Tensor
) -> Tensor:
    """The gradient of x: ``grad_quantized`` and ``factors[q]`` times the residual after level q."""
    dtype = compute_dtype(x, codebooks)
    rest, grad = x.to(dtype), grad_quantized.to(dtype)
    for q, codebook in enumerate(codebooks):
        index = indices[..., q]
        used = (index >= 0).unsqueeze(-1)
        rest = rest - torch.where(used, codebook.to(dtype)[index.clamp_min(0)], 0)
        grad = grad + torch.where(used, factors[q].to(dtype) * rest, 0)
    return grad
