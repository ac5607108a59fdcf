# SPDX-License-Identifier: Apache-2.0
"""What every part of a run shares: the device, how much is asked for, and the shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import fastvq
from benchmarks.gpu.running import Skip
from fastvq import _backends

_T = TypeVar("_T")
# what a backend says of a call that is not for it
_UNSERVED = ("was asked for and cannot run", "of the native backend takes")
# (N, K, D): a small VQ-VAE, many rows, VQGAN, IBQ, DAC, one level of a residual codec
SEARCH_SHAPES = (
    (65536, 512, 64),
    (1 << 20, 1024, 64),
    (262144, 8192, 256),
    (65536, 262144, 256),
    (1 << 20, 1024, 8),
    (150000, 1024, 128),
)
# the wide vectors that the shapes above leave out
WIDE_SHAPES = ((65536, 8192, 512), (65536, 8192, 1024))
# so few channels that products of matrices are mostly padding: what csrc/cuda searches directly
NARROW_SHAPES = ((1 << 20, 1024, 1), (1 << 20, 1024, 2), (1 << 20, 1024, 4))
# (levels, N, K, D) of a codec
RESIDUAL_SHAPE = (8, 150000, 1024, 128)
STEP_SHAPES = ((65536, 512, 64), (65536, 8192, 256))


class Setting(NamedTuple):
    """Where and how thoroughly a run works."""

    device: str
    quick: bool
    backends: tuple[str, ...]

    @classmethod
    def of(cls, device: str, *, quick: bool) -> Setting:
        """Every backend that serves the device, the specification last."""
        return cls(device, quick, tuple(n for n in _backends.NAMES if _serves(n, device)))

    def on(self, backend: str, run: Callable[[], _T]) -> _T:
        """Runs on one backend; what it says it does not serve is skipped, not failed."""
        with fastvq.use_backend(backend):
            try:
                return run()
            except RuntimeError as error:
                if any(words in str(error) for words in _UNSERVED):
                    raise Skip(str(error)) from error
                raise


def _serves(backend: str, device: str) -> bool:
    with fastvq.use_backend(backend):
        return runs("nearest", device)


def runs(op: str, device: str) -> bool:
    """Whether the backend in use has an op for a device."""
    try:
        _backends.chosen(op, device)
    except RuntimeError:
        return False
    return True
