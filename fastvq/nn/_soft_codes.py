# SPDX-License-Identifier: Apache-2.0
r"""A choice among codes by softmax, made anew in backward a bounded number of vectors at a time.

With logits :math:`l_{nk} = x_n \cdot w_k`, all that backward needs of the N x K probabilities is
the sums below, of which it keeps none: the work space is bounded and the time N K (D + V).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

# numbers in the logits of one chunk of vectors, of which a few exist at once
_WORKSPACE = 1 << 20


# ops of their own, so that a graph holds one node where the loop over chunks would unroll, and so
# that autocast stays out of the products
@torch.library.custom_op("fastvq::soft_choice", mutates_args=())
def soft_choice(
    x: Tensor, keys: Tensor, values: Tensor, seed: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    r"""The mean value of all codes and the most probable of them, under noise of a seed.

    .. math:: p_{nk} \propto \exp((x_n \cdot w_k + g_{nk}) / \tau), \qquad
              y_n = \sum_k p_{nk} v_k

    Args:
        x: ``[N, D]``, finite.
        keys: w ``[K, D]``.
        values: v ``[K, V]``.
        seed: int64 0-d, on the CPU, of the Gumbel noise g.
        temperature: :math:`\tau`.

    Returns:
        y ``[N, V]`` with the gradient of a softmax, and the indices of the largest p ``[N]``.
    """
    # whole from the start: small results between the chunks would keep their memory from reuse
    means = x.new_empty(len(x), values.shape[1])
    indices = x.new_empty(len(x), dtype=torch.int64)
    with torch.autocast(x.device.type, enabled=False):
        for part, p in _choices(x, keys, seed, temperature):
            torch.argmax(p, -1, out=indices[part])
            torch.mm(p, values, out=means[part])
    return means, indices


@soft_choice.register_fake
def _fake_choice(
    x: Tensor, keys: Tensor, values: Tensor, seed: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], values.shape[1]), x.new_empty(x.shape[0], dtype=torch.int64)


@torch.library.custom_op("fastvq::soft_choice_backward", mutates_args=())
def _soft_choice_backward(
    grad: Tensor, x: Tensor, keys: Tensor, values: Tensor, seed: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
    with torch.autocast(x.device.type, enabled=False):
        for part, p in _choices(x, keys, seed, temperature):
            grad_values.addmm_(p.mT, grad[part])
            logits = _through_softmax(grad[part] @ values.mT, p).div_(temperature)
            grad_keys.addmm_(logits.mT, x[part])
            torch.mm(logits, keys, out=grad_x[part])
    return grad_x, grad_keys, grad_values


@_soft_choice_backward.register_fake
def _fake_choice_backward(
    grad: Tensor, x: Tensor, keys: Tensor, values: Tensor, seed: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), keys.new_empty(keys.shape), values.new_empty(values.shape)


def _setup_choice(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, keys, values, seed, ctx.temperature = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, keys, values, seed)


def _backward_choice(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, Tensor, Tensor, None, None]:
    grads = _soft_choice_backward(grad, *ctx.saved_tensors, ctx.temperature)
    return *grads, None, None


soft_choice.register_autograd(_backward_choice, setup_context=_setup_choice)


def _parts(x: Tensor, keys: Tensor) -> Iterator[slice]:
    """Ranges of vectors whose logits fit the work space."""
    rows = max(1, _WORKSPACE // keys.shape[0])
    return (slice(start, start + rows) for start in range(0, x.shape[0], rows))


def _choices(
    x: Tensor, keys: Tensor, seed: Tensor, temperature: float
) -> Iterator[tuple[slice, Tensor]]:
    """Ranges of vectors and their probabilities ``[n, K]``; the same of the same seed."""
    generator = torch.Generator(x.device).manual_seed(int(seed))
    for part in _parts(x, keys):
        logits = x[part] @ keys.mT
        waits = torch.empty_like(logits).exponential_(generator=generator)
        # minus the logarithm of an exponential variable is a Gumbel variable
        logits -= waits.clamp_min_(torch.finfo(waits.dtype).tiny).log_()
        yield part, torch.softmax(logits.div_(temperature), dim=-1)


def _through_softmax(grad: Tensor, p: Tensor) -> Tensor:
    """The gradient of logits from that of their softmax p."""
    return p * (grad - (grad * p).sum(-1, keepdim=True))
