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
_WORKSPACE = 1 << 18


def bit_entropies(logits: Tensor) -> Tensor:
    """The entropy in nats of each bit, exact to rounding for logits of any size."""
    size = logits.abs()
    # of the less likely value; 0 where it would be subnormal, at ten times the time
    most = -math.log(torch.finfo(size.dtype).tiny)
    odds = torch.where(size < most, torch.exp(-size.clamp_max(most)), 0)
    return torch.log1p(odds) + size * odds / (1 + odds)


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
        for left, right, *_ in _tables(logits, weights):
            sums.addmm_(left, right.mT)
    return sums.flatten()


@code_sums.register_fake
def _fake(logits: Tensor, weights: Tensor) -> Tensor:
    return logits.new_empty(2 ** logits.shape[-1])


@torch.library.custom_op("fastvq::code_sums_backward", mutates_args=())
def _code_sums_backward(grad: Tensor, logits: Tensor, weights: Tensor) -> Tensor:
    grad, found = _square(grad, logits.shape[-1]), torch.empty_like(logits.mT)
    with torch.autocast(logits.device.type, enabled=False):
        for left, right, bits, part in _tables(logits, weights):
            high, low = bits.tensor_split([_high(len(bits))])
            upper, lower = found[:, part].tensor_split([len(high)])
            upper.copy_(_through_table(left * (grad @ right), high))
            lower.copy_(_through_table(right * (grad.mT @ left), low))
    return found.mT.contiguous()


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


def _tables(logits: Tensor, weights: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """Weighted left tables, right tables and logits, and the bounded number of vectors they are of.

    The vectors are in the last dimension, so that every step goes along memory.
    """
    bits = logits.shape[-1]
    size = max(1, _WORKSPACE // (2 ** _high(bits) + 2 ** (bits - _high(bits))))
    for start in range(0, len(logits), size):
        part = slice(start, start + size)
        chunk = logits[part].mT.contiguous()
        high, low = chunk.tensor_split([_high(bits)])
        yield _table(high) * weights[part], _table(low), chunk, part


def _table(logits: Tensor) -> Tensor:
    """The probabilities ``[2^b, m]`` of the codes of logits ``[b, m]``."""
    table = logits.new_ones(1, logits.shape[1])
    # from the lowest bit on, so that the codes of either value of a bit are in a row
    for zero, one in zip(
        torch.sigmoid(-logits).flip(0), torch.sigmoid(logits).flip(0), strict=True
    ):
        table = torch.cat([table * zero, table * one])
    return table


def _through_table(grad: Tensor, logits: Tensor) -> Tensor:
    """The gradient of logits ``[b, m]`` from table times gradient of the table ``[2^b, m]``."""
    bits = len(logits)
    places = torch.arange(bits - 1, -1, -1, device=grad.device).unsqueeze(-1)
    codes = torch.arange(2**bits, device=grad.device)
    ones = (codes >> places & 1).to(grad.dtype)  # [b, 2^b]
    # the derivative of a factor by its logit is its complement: nothing cancels
    return torch.sigmoid(-logits) * (ones @ grad) - torch.sigmoid(logits) * ((1 - ones) @ grad)
