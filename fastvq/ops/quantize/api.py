# SPDX-License-Identifier: Apache-2.0
"""``quantize``: what it promises, its schemas, its gradient, and where its implementations hang."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fastvq import _backends, _checks
from fastvq.ops._layout import canonical, canonical_indices, compute_dtype

Gradient = Literal["straight_through", "rotation", "diveq"]
GRADIENTS = ("straight_through", "rotation", "diveq")


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
torch.library.define(
    "fastvq::directional_backward",
    "(Tensor grad_quantized, Tensor factor, Tensor x, Tensor codebook, Tensor indices,"
    " str gradient, bool to_codes) -> Tensor",
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


@torch.library.register_fake("fastvq::directional_backward")
def _fake_directional(
    grad_quantized: Tensor,
    factor: Tensor,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    gradient: str,
    to_codes: bool,
) -> Tensor:
    if to_codes:
        return x.new_empty(x.shape, dtype=compute_dtype(x, codebook))
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


@torch.library.impl("fastvq::directional_backward", "default")
@torch.no_grad()
def _run_directional(
    grad_quantized: Tensor,
    factor: Tensor,
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    gradient: str,
    to_codes: bool,
) -> Tensor:
    launch = _backends.resolve("directional_backward", x)
    return launch(grad_quantized, factor, x, codebook, indices, gradient, to_codes)


_backends.register("quantize", "fastvq.ops.quantize")
_backends.register("quantize_backward", "fastvq.ops.quantize")
_backends.register("directional_backward", "fastvq.ops.quantize")
_op = torch.ops.fastvq.quantize.default
_op_backward = torch.ops.fastvq.quantize_backward.default
_op_directional = torch.ops.fastvq.directional_backward.default


class _Estimated(torch.autograd.Function):
    """x, codebook, indices -> quantized, commitment loss, codebook loss, all canonical."""

    @staticmethod
    def forward(
        x: Tensor, codebook: Tensor, indices: Tensor, gradient: Gradient
    ) -> tuple[Tensor, ...]:
        quantized, loss, scale = _op(x, codebook, indices)
        # two losses of one value: outputs of a Function must not alias one another
        return quantized, loss, loss.clone(), scale

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Gradient], output: tuple[Tensor, ...]
    ) -> None:
        *tensors, ctx.gradient = inputs
        ctx.mark_non_differentiable(output[3])
        # not a launch for each output that nobody uses
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[3])

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any,
        grad_quantized: Tensor | None,
        grad_commitment: Tensor | None,
        grad_codebook: Tensor | None,
        _: Any,
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, codebook, indices, scale = ctx.saved_tensors
        rows = x, codebook, indices
        grad_quantized = _given(grad_quantized, x)
        grad_x = grad_c = None
        if ctx.needs_input_grad[0]:
            factor = _given(grad_commitment, scale) * scale
            if ctx.gradient == "straight_through":
                grad_x = _op_backward(grad_quantized, factor, *rows)
            else:
                grad_x = _op_directional(grad_quantized, factor, *rows, ctx.gradient, False)
        if ctx.needs_input_grad[1]:
            factor = -_given(grad_codebook, scale) * scale
            # through the dispatcher: ops are siblings, and siblings do not import each other
            statistics, num_codes = torch.ops.fastvq.statistics.default, codebook.shape[1]
            if ctx.gradient == "diveq":
                pulls = _op_directional(grad_quantized, factor, *rows, ctx.gradient, True)
                sums = statistics(pulls, indices, num_codes, None)[1]
            else:
                sums = statistics(x, indices, num_codes, codebook)[1] * factor
            grad_c = sums.to(codebook.dtype)
        return grad_x, grad_c, None, None


def _given(grad: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if grad is None else grad


def quantize(
    x: Tensor,
    codebook: Tensor,
    indices: Tensor,
    *,
    gradient: Gradient = "straight_through",
) -> Quantize:
    r"""The vectors of the chosen codes, with an estimated gradient and both losses.

    .. math:: q_n = c_{i_n}, \qquad
       L = \frac{1}{V} \sum_n \lVert x_n - c_{i_n} \rVert^2

    where V is the number of elements of the vectors that have a code. Both losses have the value
    L; the commitment loss sends its gradient to x alone and the codebook loss to the codebook
    alone. How the gradient g of ``quantized`` reaches x is estimated, with R, u and the ratio of
    norms held constant; a hat makes a unit vector:

    .. math::
       \text{straight\_through:} \quad & q = x + \operatorname{sg}[c - x],
       && \partial_x = g \\
       \text{rotation:} \quad & q = \tfrac{\lVert c \rVert}{\lVert x \rVert} R x,
       && \partial_x = \tfrac{\lVert c \rVert}{\lVert x \rVert} R^\top g \\
       \text{diveq:} \quad & q = x + \lVert c - x \rVert u, \; u = \widehat{c - x},
       && \partial_x = g - u u^\top g, \; \partial_c = u u^\top g

    where R turns the direction of x into that of c in their plane. ``diveq`` is the limit of no
    noise of its paper, and the only one whose gradient reaches the codebook. The values are the
    codes', whatever the estimator.

    Args:
        x: vectors ``[..., D]``, or ``[..., H, D]`` with heads; float32, float16, bfloat16 or
            float64; any strided view.
        codebook: ``[K, D]`` or ``[H, K, D]``.
        indices: int64 ``[...]`` or ``[..., H]``, each in ``[0, K)``, or -1 for a vector without a
            code (a masked position): its row of ``quantized`` is 0, and it has neither loss nor
            gradient.
        gradient: the estimator: ``straight_through``, ``rotation`` or ``diveq``.

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
        index out of range yields a row of NaN. Deterministic. Extra memory O(N + K); O(N D) for
        the gradient of the codebook under ``diveq``.

        ``rotation`` and ``diveq`` take their dot products in float64. Where x is zero there is no
        direction to turn, and ``rotation`` passes g unchanged; where the code is zero it passes
        nothing; where the two are opposite (1 + cos below 2^-32) R is the reflection of x. With
        D = 1 it is the ratio c / x. Where x is its code, ``diveq`` passes g unchanged.

    Source: 1711.00937, section 3.2, equation 3; rotation: 2410.06424, section 4; diveq: 2509.26469.

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
    tracked = torch.is_grad_enabled() and (x.requires_grad or codebook.requires_grad)
    # a Function costs more than the rest of a small call
    run = _Estimated.apply if tracked else _Estimated.forward
    quantized, commitment_loss, codebook_loss, _ = run(rows, codes, index, gradient)
    if rows is not x:
        quantized = quantized.reshape(x.shape)
    return Quantize(quantized, commitment_loss, codebook_loss)
