# SPDX-License-Identifier: Apache-2.0
"""``quantize``: what it promises, its schemas, its gradient, and where its implementations hang."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastvq import _backends, _checks
from fastvq.ops._layout import canonical, canonical_indices, compute_dtype

Gradient = Literal["straight_through"]
GRADIENTS = ("straight_through",)


class Quantize(NamedTuple):
    """The vectors of the chosen codes and the two losses that pull x and the codes together."""

    quantized: Tensor
    commitment_loss: Tensor
    codebook_loss: Tensor


torch.library.define(
    "fastvq::quantize",
    "(Tensor x, Tensor codebook, Tensor indices) -> (Tensor quantized, Tensor loss, Tensor scale)",
)
torch.library.define(
    "fastvq::quantize_backward",
    "(Tensor grad_quantized, Tensor factor, Tensor x, Tensor codebook, Tensor indices) -> Tensor",
)


@torch.library.register_fake("fastvq::quantize")
def _fake(x: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(x, codebook)
    return torch.empty_like(x), x.new_empty((), dtype=dtype), x.new_empty((), dtype=dtype)


@torch.library.register_fake("fastvq::quantize_backward")
def _fake_backward(
    grad_quantized: Tensor, factor: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    return torch.empty_like(x)


@torch.library.impl("fastvq::quantize", "default")
@torch.no_grad()
def _run(x: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _backends.resolve("quantize", x)(x, codebook, indices)


@torch.library.impl("fastvq::quantize_backward", "default")
@torch.no_grad()
def _run_backward(
    grad_quantized: Tensor, factor: Tensor, x: Tensor, codebook: Tensor, indices: Tensor
) -> Tensor:
    launch = _backends.resolve("quantize_backward", x)
    return launch(grad_quantized, factor, x, codebook, indices)


_backends.register("quantize", "fastvq.ops.quantize")
_backends.register("quantize_backward", "fastvq.ops.quantize")
_op = torch.ops.fastvq.quantize.default
_op_backward = torch.ops.fastvq.quantize_backward.default


class _StraightThrough(torch.autograd.Function):
    """x, codebook, indices -> quantized, commitment loss, codebook loss, all canonical."""

    @staticmethod
    def forward(x: Tensor, codebook: Tensor, indices: Tensor) -> tuple[Tensor, ...]:
        quantized, loss, scale = _op(x, codebook, indices)
        # two losses of one value: outputs of a Function must not alias one another
        return quantized, loss, loss.clone(), scale

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: tuple[Tensor, ...]
    ) -> None:
        ctx.mark_non_differentiable(output[3])
        ctx.save_for_backward(*inputs, output[3])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_quantized: Tensor, grad_commitment: Tensor, grad_codebook: Tensor, _: Any
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, codebook, indices, scale = ctx.saved_tensors
        grad_x = grad_c = None
        if ctx.needs_input_grad[0]:
            grad_x = _op_backward(grad_quantized, grad_commitment * scale, x, codebook, indices)
        if ctx.needs_input_grad[1]:
            # through the dispatcher: ops are siblings, and siblings do not import each other
            _, residuals = torch.ops.fastvq.statistics.default(
                x, indices, codebook.shape[1], codebook
            )
            grad_c = (residuals * (-grad_codebook * scale)).to(codebook.dtype)
        return grad_x, grad_c, None


def quantize(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    *,
    gradient: Gradient = "straight_through",
) -> Quantize:
    r"""The vectors of the chosen codes, with the straight-through gradient and both losses.

    .. math:: q_n = c_{i_n}, \qquad
       L = \frac{1}{V} \sum_n \lVert x_n - c_{i_n} \rVert^2

    where V is the number of elements of the vectors that have a code. Both losses have the value
    L; the commitment loss sends its gradient to x alone and the codebook loss to the codebook
    alone. The gradient of ``quantized`` reaches x unchanged (straight through) and the codebook
    not at all.

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with heads; float32, float16, bfloat16 or
            float64; any strided view.
        codebook: ``[K, D]`` or ``[H, K, D]``.
        indices: int64 ``[...]`` or ``[..., H]``, each in ``[0, K)``, or -1 for a vector without a
            code (a masked position): its row of ``quantized`` is 0, and it has neither loss nor
            gradient.
        gradient: the estimator of the gradient of x, ``straight_through``.

    Returns:
        ``Quantize(quantized, commitment_loss, codebook_loss)``: ``quantized`` has the shape, dtype
        and memory layout of x; the losses are 0-d, in float32 (float64 if an input is), squared
        units of x.

    Raises:
        TypeError: x or the codebook is not floating, or the indices are not int64.
        ValueError: shapes or devices do not fit, or ``gradient`` is unknown.
        IndexError: (on the CPU) an index is out of range.

    Note:
        Differences are taken in float32 between x and the codebook as given, before the codes are
        rounded to the dtype of x. On a GPU, where a check would have to wait for the device, an
        index out of range yields a row of NaN. Deterministic. Extra memory O(N + K).

    Source: 1711.00937, section 3.2, equation 3.

    Example:
        >>> import torch, fastvq
        >>> x = torch.tensor([[0.5, 1.0]], requires_grad=True)
        >>> out = fastvq.ops.quantize(x, torch.ones(1, 2), torch.tensor([0]))
        >>> out.quantized.detach(), out.commitment_loss.item()
        (tensor([[1., 1.]]), 0.125)
        >>> out.commitment_loss.backward()
        >>> x.grad
        tensor([[-0.5000,  0.0000]])
    """
    _checks.codebook(x, codebook)
    _checks.indices(indices, x)
    _checks.one_of("gradient", gradient, GRADIENTS)
    heads = codebook.ndim == 3
    rows = canonical(x, heads)
    codes = codebook if heads else codebook.unsqueeze(0)
    index = canonical_indices(indices, heads)
    if torch.is_grad_enabled() and (x.requires_grad or codebook.requires_grad):
        quantized, commitment_loss, codebook_loss, _ = _StraightThrough.apply(rows, codes, index)
    else:
        # a Function costs more than the rest of a small call
        quantized, commitment_loss, codebook_loss, _ = _StraightThrough.forward(rows, codes, index)
    return Quantize(quantized.reshape(x.shape), commitment_loss, codebook_loss)
