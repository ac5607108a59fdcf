# SPDX-License-Identifier: Apache-2.0
"""``residual``: what it promises, its schemas, its gradient, and where implementations hang."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastvq import _backends, _checks
from fastvq.ops._layout import canonical, compute_dtype

Gradient = Literal["straight_through", "rotation"]
GRADIENTS = ("straight_through", "rotation")


class Residual(NamedTuple):
    """The sum of the codes of all levels, the codes, and the losses of each level.

    Attributes:
        quantized: the shape, dtype and memory layout of x.
        indices: int64 ``[..., Q]``; -1 at the levels that a vector does not take.
        commitment_losses: ``[Q]``, with a gradient to x alone.
        codebook_losses: ``[Q]``, of the same values, with a gradient to the codebooks alone.
    """

    quantized: Tensor
    indices: Tensor
    commitment_losses: Tensor
    codebook_losses: Tensor


torch.library.define(
    "fastvq::residual",
    "(Tensor x, Tensor codebooks, Tensor? levels)"
    " -> (Tensor quantized, Tensor indices, Tensor losses, Tensor scales)",
)
torch.library.define(
    "fastvq::residual_backward",
    "(Tensor grad_quantized, Tensor factors, Tensor x, Tensor codebooks, Tensor indices) -> Tensor",
)


@torch.library.register_fake("fastvq::residual")
def _fake(
    x: Tensor, codebooks: Tensor, levels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x, codebooks)
    levels_of_all = codebooks.shape[0]
    indices = x.new_empty((*x.shape[:-1], levels_of_all), dtype=torch.int64)
    losses = x.new_empty(levels_of_all, dtype=dtype)
    return torch.empty_like(x), indices, losses, torch.empty_like(losses)


@torch.library.register_fake("fastvq::residual_backward")
def _fake_backward(
    grad_quantized: Tensor, factors: Tensor, x: Tensor, codebooks: Tensor, indices: Tensor
) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl("fastvq::residual", "default")
@torch.no_grad()
def _run(
    x: Tensor, codebooks: Tensor, levels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    launch = _backends.resolve("residual", x)
    quantized, indices, losses, scales = launch(x, codebooks, levels)
    return _like(quantized, x), indices, losses, scales


@torch.library.impl("fastvq::residual_backward", "default")
@torch.no_grad()
def _run_backward(
    grad_quantized: Tensor, factors: Tensor, x: Tensor, codebooks: Tensor, indices: Tensor
) -> Tensor:
    launch = _backends.resolve("residual_backward", x)
    return _like(launch(grad_quantized, factors, x, codebooks, indices), x)


def _like(result: Tensor, x: Tensor) -> Tensor:
    """The result in the dtype and layout of x."""
    fits = result.dtype == x.dtype and result.stride() == x.stride() and result is not x
    return result if fits else torch.empty_like(x).copy_(result)


_backends.register("residual", "fastvq.ops.residual")
_backends.register("residual_backward", "fastvq.ops.residual")
_op = torch.ops.fastvq.residual.default
_op_backward = torch.ops.fastvq.residual_backward.default


def _turned(grad: Tensor, x: Tensor, quantized: Tensor) -> Tensor:
    """The gradient of x ``[B, M, D]`` by rotation: every row's sum of codes is its code."""
    table = quantized.reshape(1, -1, x.shape[-1])
    index = torch.arange(table.shape[1], device=x.device).view(*x.shape[:-1], 1)
    no_loss = x.new_zeros((), dtype=compute_dtype(x))
    # through the dispatcher: ops are siblings, and siblings do not import each other
    turn = torch.ops.fastvq.directional_backward.default
    grads = turn(grad.unsqueeze(2), no_loss, x.unsqueeze(2), table, index, "rotation", False)
    return grads.squeeze(2)


class _Estimated(torch.autograd.Function):
    """x, codebooks, levels -> quantized, indices, both losses, 2 / V, all canonical."""

    @staticmethod
    def forward(
        x: Tensor, codebooks: Tensor, levels: Tensor | None, gradient: Gradient
    ) -> tuple[Tensor, ...]:
        quantized, indices, losses, scales = _op(x, codebooks, levels)
        # two losses of one value: outputs of a Function must not alias one another
        return quantized, indices, losses, losses.clone(), scales

    @staticmethod
    def setup_context(
        ctx: Any,
        inputs: tuple[Tensor, Tensor, Tensor | None, Gradient],
        output: tuple[Tensor, ...],
    ) -> None:
        x, codebooks, _, gradient = inputs
        quantized, indices, _, _, scales = output
        ctx.mark_non_differentiable(indices, scales)
        turns_to = quantized if gradient == "rotation" else None
        ctx.save_for_backward(x, codebooks, indices, scales, turns_to)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_quantized: Tensor, _: Any, grad_commitment: Tensor, grad_codebook: Tensor,
        __: Any,
    ) -> tuple[Tensor | None, Tensor | None, None, None]:  # fmt: skip
        x, codebooks, indices, scales, turns_to = ctx.saved_tensors
        grad_x = grad_c = None
        if ctx.needs_input_grad[0]:
            factors = grad_commitment * scales
            if turns_to is not None:
                grad_quantized = _turned(grad_quantized, x, turns_to)
            grad_x = _op_backward(grad_quantized, factors, x, codebooks, indices)
        if ctx.needs_input_grad[1]:
            factors = (-grad_codebook * scales).view(-1, 1, 1)
            sums = level_statistics(x, codebooks, indices)[1]
            grad_c = (sums * factors).to(codebooks.dtype)
        return grad_x, grad_c, None, None


def residual(
    x: Tensor,
    codebooks: Tensor,
    *,
    levels: Tensor | None = None,
    gradient: Gradient = "straight_through",
) -> Residual:
    r"""Quantizes x by Q codebooks, each coding what the ones before it left over.

    .. math:: r_1 = x, \qquad i_q = \arg\min_k \lVert r_q - c_{q,k} \rVert, \qquad
              r_{q+1} = r_q - c_{q,i_q}, \qquad \hat x = \sum_q c_{q,i_q}

    Equal to the loop over the levels with :func:`nearest`, bit for bit. The gradient of
    ``quantized`` reaches x unchanged; the loss of level q, :math:`\lVert r_{q+1} \rVert^2` averaged
    over the elements, sends its gradient to x (commitment) or to the codes of level q (codebook).

    Args:
        x: vectors ``[..., D]``; float32, float16, bfloat16 or float64; any strided view.
        codebooks: ``[Q, K, D]``; one codebook for all levels is a view, ``codebook.expand(Q, -1,
            -1)``, and its gradient is summed over the levels.
        levels: int64 ``[...]``, how many of the first levels each vector takes, from 0 to Q; all
            unless given (quantizer dropout).
        gradient: how the gradient of ``quantized`` reaches x: ``straight_through``, unchanged, or
            ``rotation``, turned back and scaled as :func:`quantize` has it for the sum of the codes
            in the place of one code.

    Returns:
        :class:`Residual`; losses in float32, float64 if an input is.

    Raises:
        TypeError: x or the codebooks are not floating, or ``levels`` is not int64.
        ValueError: shapes or devices do not fit, or ``gradient`` is unknown.

    Note:
        Residuals are kept in float32 (float64 if an input is), whatever the dtype of x. A vector
        with a NaN or an Inf gets index 0 at every level and spoils the losses, no other vector.
        Deterministic. Extra memory O(N (D + Q) + Q K).

    Source: 2107.03312 (SoundStream), section III-C; 2203.01941 (RQ-VAE), section 3.1; rotation:
    2410.06424, section 4.

    Example:
        >>> import torch, fastvq
        >>> codebooks = torch.tensor([[[0.0], [8.0]], [[-1.0], [1.0]]])
        >>> out = fastvq.ops.residual(torch.tensor([[6.5], [1.25]]), codebooks)
        >>> out.indices.tolist(), out.quantized.flatten().tolist()
        ([[1, 0], [0, 1]], [7.0, 1.0])
    """
    _checks.floating("x", x)
    _checks.floating("codebooks", codebooks)
    _checks.one_of("gradient", gradient, GRADIENTS)
    if x.ndim < 1 or codebooks.ndim != 3 or 0 in codebooks.shape[:2]:
        raise ValueError(
            f"codebooks must be [Q, K, D] with Q, K > 0 and x [..., D], "
            f"got {_checks.shape(codebooks)} and {_checks.shape(x)}"
        )
    _checks.codebook(x, codebooks[0])
    rows = canonical(x, False).squeeze(2)  # [B, M, D]
    taken = None
    if levels is not None:
        _checks.indices(levels, x)
        taken = levels.reshape(rows.shape[:2])
    out = _Estimated.apply(rows, codebooks, taken, gradient)
    quantized, indices, commitment_losses, codebook_losses, _ = out
    shape = (*x.shape[:-1], codebooks.shape[0])
    return Residual(
        quantized.reshape(x.shape), indices.reshape(shape), commitment_losses, codebook_losses
    )


def level_statistics(x: Tensor, codebooks: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    r"""Counts ``[Q, K]`` and sums ``[Q, K, D]`` of the residuals after each code of each level.

    .. math:: s_{q,k} = \sum_n [i_{q,n} = k] \, r_{q+1,n}

    Args:
        x: vectors ``[B, M, D]``.
        codebooks: ``[Q, K, D]``.
        indices: int64 ``[B, M, Q]``, as :func:`residual` gives them.
    """
    dtype = compute_dtype(x, codebooks)
    rest = x.detach().to(dtype)
    counts, sums = [], []
    for q, codebook in enumerate(codebooks.detach().to(dtype)):
        index = indices[..., q]
        count, total = torch.ops.fastvq.statistics.default(
            rest.unsqueeze(2), index.unsqueeze(2), codebook.shape[0], codebook.unsqueeze(0)
        )
        counts.append(count[0])
        sums.append(total[0])
        if q + 1 < codebooks.shape[0]:
            # a row without a code here has none at the later levels either
            rest = rest - torch.nn.functional.embedding(index.clamp_min(0), codebook)
    return torch.stack(counts), torch.stack(sums)
