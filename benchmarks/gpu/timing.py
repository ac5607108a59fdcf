# SPDX-License-Identifier: Apache-2.0
"""Times on the device's own clock, and the two rates of this very device that bound them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from benchmarks.measure import peak_device_bytes

# at least the L2 of any GPU so far
_FLUSH_BYTES = 256 << 20
_COPY_BYTES = 2 << 30
_MATRIX = 8192
_REPEATS, _SECONDS = 15, 1.5


class Times(NamedTuple):
    """Medians in seconds: called from Python, and replayed from a graph (``None``: cannot be)."""

    eager: float
    graph: float | None

    @property
    def best(self) -> float:
        return self.eager if self.graph is None else min(self.eager, self.graph)


class Rates(NamedTuple):
    """What the device does at best, measured in the same process as what it is held against."""

    copy: float  # bytes read and written a second
    product: float  # operations a second of a large bfloat16 matrix product

    @classmethod
    def measured(cls) -> Rates:
        buffer = torch.randint(256, (_COPY_BYTES,), dtype=torch.uint8, device="cuda")
        target = torch.empty_like(buffer)
        copy = 2 * _COPY_BYTES / seconds(lambda: target.copy_(buffer))
        # random, not zeros: a product of zeros runs faster than any real one
        a, b = (torch.randn(_MATRIX, _MATRIX, device="cuda").to(torch.bfloat16) for _ in range(2))
        return cls(copy, 2.0 * _MATRIX**3 / seconds(lambda: a @ b))

    def floor(self, flops: float, bytes_moved: float) -> float:
        """Seconds that no implementation can beat by much."""
        return max(flops / self.product, bytes_moved / self.copy)


def times(call: Callable[[], object], *, waits: bool = False) -> Times:
    """Both times of a call; what waits for the device is called only, no graph can hold it."""
    eager = seconds(call)
    replay = None if waits else _captured(call)
    return Times(eager, None if replay is None else seconds(replay))


def seconds(call: Callable[[], object]) -> float:
    """Median over cold runs: warmed up, and with nothing of the last run in the L2."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    pairs = []
    end = time.monotonic() + _SECONDS
    while len(pairs) < _REPEATS and (len(pairs) < 3 or time.monotonic() < end):
        flush.zero_()
        pair = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        pair[0].record()
        call()
        pair[1].record()
        pair[1].synchronize()
        pairs.append(pair)
    return statistics.median(first.elapsed_time(last) for first, last in pairs) / 1e3


def _captured(call: Callable[[], object]) -> Callable[[], None] | None:
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    try:
        with torch.cuda.graph(graph):
            call()
    except RuntimeError:
        # it waits for the device somewhere, which its eager time shows well enough
        torch.cuda.synchronize()
        return None
    return graph.replay


def peak_bytes(call: Callable[[], object]) -> int:
    """Device memory that a call takes beyond what is allocated before it, once all is compiled."""
    call()
    return peak_device_bytes(call)
