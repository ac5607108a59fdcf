# SPDX-License-Identifier: Apache-2.0
r"""Codes that a network makes of base codes and of what has been decoded so far.

.. math:: z_0 = c + A \, [c; \hat x] + a, \qquad
          z_l = z_{l-1} + V_l \operatorname{relu}(U_l \, z_{l-1}), \qquad
          f(c, \hat x) = z_L
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# numbers in the candidates, and in the hidden layer, of one chunk of vectors
_WORKSPACE = 1 << 22


class Step(NamedTuple):
    """The network of one step: mix A ``[D, 2 D]``, bias a ``[D]``, up U ``[L, h, D]`` and down V
    ``[L, D, h]``.
    """

    mix: Tensor
    bias: Tensor
    up: Tensor
    down: Tensor


def codes_of(base: Tensor, decoded: Tensor, step: Step) -> Tensor:
    """f of base codes ``[N, D]``, each with its own decoded vector ``[N, D]``."""
    pair = torch.cat([base, decoded], dim=-1)
    return _blocks(base + torch.nn.functional.linear(pair, step.mix, step.bias), step.up, step.down)


# an op of its own, so that a graph holds one node where the loop over chunks would unroll
@torch.library.custom_op("fastvq::nearest_neural", mutates_args=())
def nearest_neural(
    x: Tensor,
    decoded: Tensor,
    base: Tensor,
    mix: Tensor,
    bias: Tensor,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    """For each x ``[N, D]`` the k of the smallest ``|x - decoded - f(base_k, decoded)|``, ``[N]``.

    A vector has codes of its own, K of them: N K (D + h) numbers, made in chunks.
    """
    rows = max(1, _WORKSPACE // (base.shape[0] * (base.shape[1] + up.shape[1])))
    indices = [torch.empty(0, dtype=torch.int64, device=x.device)]
    with torch.autocast(x.device.type, enabled=False):
        of_code, of_decoded = mix.tensor_split(2, dim=-1)
        # the first layer is linear: its two halves are computed once and added for all pairs
        own = base + torch.nn.functional.linear(base, of_code, bias)  # [K, D]
        shift = torch.nn.functional.linear(decoded, of_decoded)  # [N, D]
        for start in range(0, x.shape[0], rows):
            part = slice(start, start + rows)
            codes = _blocks(own + shift[part].unsqueeze(1), up, down)  # [n, K, D]
            rest = (x[part] - decoded[part]).unsqueeze(1)
            indices.append((codes - rest).square().sum(-1).argmin(-1))
    return torch.cat(indices)


@nearest_neural.register_fake
def _fake(
    x: Tensor,
    decoded: Tensor,
    base: Tensor,
    mix: Tensor,
    bias: Tensor,
    up: Tensor,
    down: Tensor,
) -> Tensor:
    return torch.empty(x.shape[0], dtype=torch.int64, device=x.device)


def _blocks(z: Tensor, up: Tensor, down: Tensor) -> Tensor:
    for widen, narrow in zip(up, down, strict=True):
        hidden = torch.relu(torch.nn.functional.linear(z, widen))
        z = z + torch.nn.functional.linear(hidden, narrow)
    return z
