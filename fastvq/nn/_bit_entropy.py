# SPDX-License-Identifier: Apache-2.0
"""Entropies of codes made of independent bits, without a row of probabilities per vector.

Bit j of vector n is one with probability ``sigmoid(l_nj)``, and the probability of a code is the
product over its bits. So those of all codes of b bits are the outer product of a table for the
first b / 2 bits and one for the others, and their sum over the vectors is one matrix product,
``left.T @ right``: N 2^b multiplications, and tables of N 2^(b / 2) numbers that are made anew a
chunk at a time, where the plain way keeps N 2^b numbers for backward.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastvq import ops
from fastvq.nn._distributed import joint_mean

# numbers in the tables of one chunk of vectors
_WORKSPACE = 1 << 22


def bit_entropies(logits: Tensor) -> Tensor:
    """The entropy in nats of each bit, exact to rounding for logits of any size."""
    size = logits.abs()
    return torch.nn.functional.softplus(-size) + size * torch.sigmoid(-size)


def batch_entropy(logits: Tensor, counted: Tensor, group_bits: int, share: bool) -> Tensor:
    """The entropy in nats of the mean of the code distributions, summed over groups of bits.

    Args:
        logits: ``[N, n]``, finite.
        counted: ``[N]``, 1 for the vectors in the mean and 0 for the others, in logits' dtype.
        group_bits: the most bits of a group; the n bits fall into as few groups as that allows, of
            nearly equal size.
        share: whether the mean is over all processes. Its gradient is then that of the joint batch
            where gradients are averaged over processes, as DistributedDataParallel does.
    """
    groups = logits.tensor_split(math.ceil(logits.shape[-1] / group_bits), dim=-1)
    sums = torch.cat([code_sums(group, counted) for group in groups])
    count = counted.sum()
    mean = sums / count.clamp_min(1)
    if share:
        mean = joint_mean(mean, count)
    return ops.distribution_entropy(mean)


# ops of their own, so that a graph holds one node where the loop over chunks would unroll, and so
# that autocast stays out of the products
@torch.library.custom_op("fastvq::code_sums", mutates_args=())
def code_sums(logits: Tensor, weights: Tensor) -> Tensor:
    """The weighted sums ``[2^b]`` of the probability of each code, whose first bit is highest."""
    sums = _square(logits.new_zeros(2 ** logits.shape[-1]), logits.shape[-1])
    with torch.autocast(logits.device.type, enabled=False):
        for left, right, _ in _tables(logits, weights):
            sums.addmm_(left.mT, right)
    return sums.flatten()


@code_sums.register_fake
def _fake(logits: Tensor, weights: Tensor) -> Tensor:
    return logits.new_empty(2 ** logits.shape[-1])


@torch.library.custom_op("fastvq::code_sums_backward", mutates_args=())
def _code_sums_backward(grad: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    grad = _square(grad, logits.shape[-1])
    found = []
    with torch.autocast(logits.device.type, enabled=False):
        for left, right, chunk in _tables(logits, weights):
            high, low = chunk.tensor_split([_high(chunk.shape[-1])], dim=-1)
            found.append(_through_table(left * (right @ grad.mT), high))
            found.append(_through_table(right * (left @ grad), low))
    rows = [torch.cat(pair, dim=-1) for pair in zip(found[::2], found[1::2], strict=True)]
    return torch.cat(rows)


@_code_sums_backward.register_fake
def _fake_backward(grad: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    return _code_sums_backward(grad, *ctx.saved_tensors), None


code_sums.register_autograd(_backward, setup_context=_setup)


def _high(bits: int) -> int:
    """How many of the bits are in the left table."""
    return bits // 2


def _square(codes: Tensor, bits: int) -> Tensor:
    """Codes ``[2^b]`` as ``[2^high, 2^low]``."""
    return codes.reshape(2 ** _high(bits), -1)


def _tables(logits: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Weighted left tables, right tables and logits, a bounded number of vectors at a time."""
    bits = logits.shape[-1]
    rows = max(1, _WORKSPACE // (2 ** _high(bits) + 2 ** (bits - _high(bits))))
    for chunk, weight in zip(logits.split(rows), weights.split(rows), strict=True):
        high, low = chunk.tensor_split([_high(bits)], dim=-1)
        yield _table(high) * weight.unsqueeze(-1), _table(low), chunk


def _table(logits: Tensor) -> Tensor:
    """The probabilities ``[m, 2^b]`` of the codes of logits ``[m, b]``."""
    table = logits.new_ones(logits.shape[0], 1)
    for bit in logits.unbind(-1):
        pair = torch.sigmoid(torch.stack([-bit, bit], dim=-1))  # [m, 2]
        table = (table.unsqueeze(-1) * pair.unsqueeze(-2)).flatten(-2)
    return table


def _through_table(grad: Tensor, logits: Tensor) -> Tensor:
    """The gradient of logits ``[m, b]`` from table times gradient of the table ``[m, 2^b]``."""
    bits = logits.shape[-1]
    places = torch.arange(bits - 1, -1, -1, device=grad.device)
    codes = torch.arange(2**bits, device=grad.device).unsqueeze(-1)  # [2^b, 1]
    ones = (codes >> places & 1).to(grad.dtype)  # [2^b, b]
    # the derivative of a factor by its logit is its complement: nothing cancels
    return torch.sigmoid(-logits) * (grad @ ones) - torch.sigmoid(logits) * (grad @ (1 - ones))
