# SPDX-License-Identifier: Apache-2.0
"""Periods of a sampler as a CUDA graph: launched as one, where Python launches kernel by kernel.

The steps of `GatedPixelCNN` repeat themselves every row, and those of `WaveNet` whenever all its
blocks begin together; a graph holds all kernels of such a period, tens of thousands where dilations
reach 512. Not so where there is attention, in `PixelSNAIL` and `Transformer`: a step reads one
position more than the one before, so its shapes are its own, and reading all positions behind a
mask would cost every device twice the work. `VideoPixelCNN` makes the cache of every frame anew, in
other memory. Not yet run on a GPU: the tests repeat recorded operations instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastvq.priors.base import PeriodicStepper, Stepper

# draws the codes [P, B] of P positions from as many rows of random numbers, into what it is given
Walk = Callable[[Tensor, Tensor], None]


class Plan(NamedTuple):
    """Which positions a graph draws: ``first`` to ``last``, whole periods."""

    period: int
    first: int
    last: int


def check_device(device: torch.device) -> None:
    """Raises ``ValueError`` where there are no graphs."""
    if device.type != "cuda":
        raise ValueError(f"graph must be False unless the prior is on a CUDA device, got {device}")


def plan(stepper: Stepper, positions: int, given: int) -> Plan:
    """What a graph may draw of the positions, of which the first ``given`` have their codes.

    Before it comes one whole period at least, for what is captured must have run: libraries
    prepare themselves when they are first called, which a graph cannot hold.

    Raises:
        TypeError: the stepper has no period.
        ValueError: no whole period is left.
    """
    if not isinstance(stepper, PeriodicStepper):
        raise TypeError(
            "graph must be False unless a prior's steps repeat, as those of GatedPixelCNN and "
            f"WaveNet do, got {type(stepper).__name__}"
        )
    period = stepper.period
    first = -(-max(given, 1) // period) * period
    last = positions // period * period
    if first >= last:
        raise ValueError(
            f"graph must be False unless a whole period of {period} positions follows the first "
            f"{first}, which are drawn one by one, got {positions} positions"
        )
    return Plan(period, first, last)


def replay(walk: Walk, uniforms: Tensor, codes: Tensor, period: int) -> Iterator[int]:
    """Draws whole periods by one graph of ``walk``; yields how many positions are done.

    Args:
        walk: does the same on the same memory, period after period.
        uniforms: ``[T, B, 1]``, T a multiple of the period.
        codes: int64 ``[T, B]``, which the answers are written to.
        period: positions of each walk.
    """
    given, drawn = uniforms[:period].clone(), torch.zeros_like(codes[:period])
    launch = capture(lambda: walk(given, drawn), codes.device)
    for start in range(0, len(codes), period):
        part = slice(start, start + period)
        given.copy_(uniforms[part])
        launch()
        codes[part] = drawn
        yield start + period


def capture(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What launches again, in the order of the current stream, all that ``run`` launches.

    Capturing runs Python only, and no kernel.
    """
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream):
        run()

    def launch() -> None:
        # on its own stream, on which alone the allocator may use the graph's memory again
        current = torch.cuda.current_stream(device)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            graph.replay()
        current.wait_stream(stream)

    return launch
