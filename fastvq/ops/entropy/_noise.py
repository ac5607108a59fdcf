# SPDX-License-Identifier: Apache-2.0
"""Noise that is a function of (seed, row, code) alone: no backend, chunk or thread changes it.

Each row has two 32-bit keys; the bits of a code are ``mix(mix(code + key_0) ^ key_1)``, where mix
is the finalizer of MurmurHash3, a bijection of 32-bit words in which each bit of the input changes
each bit of the output with probability one half. Keys and bits travel as int64 in [0, 2^32).
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
# the golden ratio and the square root of 3: no two fields may start the mixing alike
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def row_keys(seed: Tensor, heads: int, rows: int) -> Tensor:
    """Two keys ``[2, H, N]`` of each head of each row, from an int64 seed."""
    n = torch.arange(rows, device=seed.device)
    h = torch.arange(heads, device=seed.device).unsqueeze(-1)
    keys = []
    for step in _KEY_STEPS:
        key = _mix((seed & _LOW) + step)
        key = _mix(key ^ ((seed >> 32) & _LOW))
        key = _mix((key + n) & _LOW)
        key = _mix(key ^ (n >> 32))
        keys.append(_mix((key + h + step) & _LOW))
    return torch.stack(keys)


def gumbel(keys: Tensor, codes: Tensor) -> Tensor:
    """Standard Gumbel noise ``[n, K]`` in float64 for keys ``[2, n]`` and code numbers ``[K]``.

    ``-log(-log(1 - v))`` with v uniform on the middles of 2^32 intervals, so that the upper tail,
    where samples come from, is where v is small and its spacing fine: up to 22.9.
    """
    first, second = keys.unsqueeze(-1)
    bits = _mix(_mix((codes + first) & _LOW) ^ second)
    return -(-torch.log1p(-(bits.double() + 0.5) * 2.0**-32)).log()


def _mix(word: Tensor) -> Tensor:
    word = word & _LOW
    word = ((word ^ (word >> 16)) * 0x85EBCA6B) & _LOW
    word = ((word ^ (word >> 13)) * 0xC2B2AE35) & _LOW
    return word ^ (word >> 16)
