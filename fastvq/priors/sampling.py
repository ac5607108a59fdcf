# SPDX-License-Identifier: Apache-2.0
"""Sampling from a prior: exact, cached, and the same codes for the same random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.priors import _graph
from fastvq.priors._prefix import in_raster_order
from fastvq.priors._recompute_stepper import RecomputeStepper
from fastvq.priors.base import Context, Prior, Stepper

Progress = Callable[[int, int], None]
# the codes [B, 1] that uniforms [B, 1] stand for under logits [B, K], written to what it is given
Draw = Callable[[Tensor, Tensor, Tensor], None]


def sample(
    prior: Prior,
    shape: Sequence[int],
    labels: Tensor | None = None,
    *,
    context: Context | None = None,
    prefix: Tensor | None = None,
    batch: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    graph: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """Draws grids of codes from a prior.

    Args:
        prior: e.g. :class:`GatedPixelCNN`. In training mode it is in eval mode during the call.
        shape: size of a grid in codes, ``(H, W)``: any size the prior accepts.
        labels: int64 ``[B]``, the class of each grid, for a class-conditional prior.
        context: for a prior with one; see :meth:`Prior.forward`.
        prefix: the first codes of each grid, to be continued: int64 ``[B, n]``, n of them in raster
            order, or ``[B, n, *shape[1:]]``, n slices along the first axis (rows of an image,
            frames of a video).
        batch: B where neither labels nor context nor prefix tell, by default 1.
        temperature: see :func:`probabilities`, as for the next two.
        top_k: how many codes may be drawn.
        top_p: how much probability may be drawn.
        generator: source of the random numbers. They are drawn on its device, by default the CPU,
            so that a seed gives the same numbers wherever the prior is.
        graph: see :func:`sample_from`.
        progress: called with (positions done, positions in all) after every position.

    Returns:
        Codes int64 ``[B, *shape]`` on the device of the prior.

    Raises:
        TypeError, ValueError: an argument out of its range, or two different B.
        RuntimeError: the prior's logits are not finite.

    Note:
        Determinism: a function of the prior and of the generator's state; see :func:`sample_from`.

    Example:
        >>> from fastvq.priors import GatedPixelCNN, GatedPixelCNNConfig, sample
        >>> prior = GatedPixelCNN(GatedPixelCNNConfig(codebook_size=64, num_classes=10))
        >>> sample(prior, (4, 4), labels=torch.arange(10)).shape
        torch.Size([10, 4, 4])
    """
    batch = _batch(batch, labels, context, prefix)
    _checks.positive("batch", batch)
    for size in shape:
        _checks.positive("each size in shape", size)
    device = "cpu" if generator is None else generator.device
    uniforms = torch.rand(batch, *shape, dtype=torch.float64, generator=generator, device=device)
    return sample_from(
        prior,
        uniforms,
        labels,
        context=context,
        prefix=prefix,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        graph=graph,
        progress=progress,
    )


@torch.no_grad()
def sample_from(
    prior: Prior,
    uniforms: Tensor,
    labels: Tensor | None = None,
    *,
    context: Context | None = None,
    prefix: Tensor | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    cached: bool = True,
    graph: bool = False,
    progress: Progress | None = None,
) -> Tensor:
    """The codes that given random numbers stand for: ``z_t = min {k : F_t(k) > u_t}``.

    Args:
        prior: as for :func:`sample`.
        uniforms: floating ``[B, *shape]`` in [0, 1); one number decides one code. Those of the
            prefix decide nothing.
        labels: int64 ``[B]`` for a class-conditional prior.
        context: for a prior with one; see :meth:`Prior.forward`.
        prefix: as for :func:`sample`.
        temperature: see :func:`probabilities`, as for the next two.
        top_k: how many codes may be drawn.
        top_p: how much probability may be drawn.
        cached: use the prior's cache; otherwise run the whole prior at every position.
        graph: replay a CUDA graph instead of launching every kernel from Python, which is what a
            small prior on a GPU waits for. For :class:`GatedPixelCNN` and :class:`WaveNet`, whose
            cached steps repeat themselves every row, or every so many positions; attention does
            not, it sees one position more at every step. The first period and what the prefix
            reaches into run plainly. The same codes. On an H200, capturing included, 16 sequences
            of 1031 codes by a :class:`WaveNet` took 0.27 s in place of 0.76, and 16 grids of 16 x
            16 by a :class:`GatedPixelCNN` 0.27 in place of 0.28.
        progress: called with (positions done, positions in all) after every position, or after
            every period that is replayed.

    Returns:
        Codes int64 ``[B, *shape]`` on the device of the prior.

    Raises:
        TypeError, ValueError, RuntimeError: as for :func:`sample`; ``graph`` where the device has
            none, the steps do not repeat, or too few positions are left to.

    Note:
        Cached and recomputed logits differ in their last bits, and the distribution function F
        with them: by about 1e-7 in float32, 1e-16 in float64. Where a uniform falls that close to
        a step of F the two may choose neighbouring codes; everywhere else they agree.
    """
    _check_uniforms(uniforms)
    _check_options(temperature, top_k, top_p)
    batch, shape = uniforms.shape[0], tuple(uniforms.shape[1:])
    device = _device(prior)
    columns = uniforms.to(device, torch.float64).flatten(1).t()[:, :, None].contiguous()
    codes = torch.empty(columns.shape[:2], dtype=torch.int64, device=device)  # [T, B]
    given = 0
    if prefix is not None:
        first = in_raster_order(prefix, batch, shape, prior.config.codebook_size)
        given = first.shape[1]
        codes[:given] = first.t()
    with _evaluating(prior):
        stepper: Stepper
        if cached:
            stepper = prior.stepper(batch, shape, labels, context)
        else:
            stepper = RecomputeStepper(prior, batch, shape, labels, context)

        def draw(logits: Tensor, uniform: Tensor, out: Tensor) -> None:
            _draw(probabilities(logits, temperature, top_k, top_p), uniform, out=out)

        walk = _walked_by_graph if graph else _walked
        for done in walk(stepper, draw, columns, codes, given):
            if progress is not None:
                progress(done, len(codes))
    return codes.t().reshape(batch, *shape)


def _walked(
    stepper: Stepper, draw: Draw, uniforms: Tensor, codes: Tensor, given: int, start: int = 0
) -> Iterator[int]:
    """Draws the codes ``[n, B]`` of the positions from ``start`` on; the first ``given`` are there.

    Yields how many positions are done.
    """
    slots = zip(uniforms, codes[:, :, None], codes, strict=True)
    for position, (uniform, slot, chosen) in enumerate(slots, start):
        logits = stepper.logits()
        if position == 0 and not bool(logits.isfinite().all()):
            raise RuntimeError("the logits of the prior are not finite: its training diverged")
        if position >= given:
            draw(logits, uniform, slot)
        stepper.append(chosen)
        yield position + 1


def _walked_by_graph(
    stepper: Stepper, draw: Draw, uniforms: Tensor, codes: Tensor, given: int
) -> Iterator[int]:
    """As `_walked`, but that whole periods after the first are one graph."""
    _graph.check_device(codes.device)
    period, first, last = _graph.plan(stepper, len(codes), given)

    def walk(uniforms: Tensor, codes: Tensor) -> None:
        for _ in _walked(stepper, draw, uniforms, codes, given, first):
            pass

    yield from _walked(stepper, draw, uniforms[:first], codes[:first], given)
    for done in _graph.replay(walk, uniforms[first:last], codes[first:last], period):
        yield first + done
    yield from _walked(stepper, draw, uniforms[last:], codes[last:], given, last)


def probabilities(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """The distribution that is sampled, float64 ``[B, K]``.

    ``softmax(logits / temperature)``, of it the ``top_k`` most probable codes, and of these,
    renormalised, the smallest set of most probable codes whose sum reaches ``top_p``. Among equally
    probable codes the lowest come first.

    Args:
        logits: ``[B, K]``.
        temperature: above zero; small values approach the most probable code.
        top_k: at least 1; more than K keeps all.
        top_p: in (0, 1].

    Returns:
        Probabilities, each row summing to 1 up to rounding.
    """
    logits = logits.double()
    if temperature != 1.0:
        # relative to the largest, so that no temperature overflows
        logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    result = torch.softmax(logits, -1)
    if top_k is None and top_p is None:
        return result
    falling, order = result.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        falling[:, top_k:] = 0
        falling = falling / falling.sum(-1, keepdim=True)
    # at 1 nothing is left out, and rounding must not leave out the tail
    if top_p is not None and top_p < 1:
        sum_before = falling.cumsum(-1) - falling
        falling = falling.masked_fill(sum_before >= top_p, 0)
        falling = falling / falling.sum(-1, keepdim=True)
    return torch.zeros_like(result).scatter(-1, order, falling)


def _draw(probabilities: Tensor, uniform: Tensor, *, out: Tensor) -> None:
    """The first code whose cumulative probability exceeds ``uniform [B, 1]``, int64 ``[B, 1]``."""
    # an impossible code adds nothing to the sum, so it is never the first to exceed anything; and
    # u <= 1 - 2^-53 keeps u * total below total after rounding, so the answer is below K
    cumulative = probabilities.cumsum(-1)
    threshold = uniform * cumulative[:, -1:]
    torch.searchsorted(cumulative, threshold, right=True, out=out)


def _batch(
    batch: int | None, labels: Tensor | None, context: Context | None, prefix: Tensor | None
) -> int:
    """The number of grids that the tensors are for, which ``batch`` must not contradict."""
    first = context[0] if isinstance(context, tuple) else context
    for name, given in (("labels", labels), ("context", first), ("prefix", prefix)):
        if given is None:
            continue
        if batch is None:
            batch = len(given)
        elif batch != len(given):
            raise ValueError(f"batch must be that of the {name}, {len(given)}, got {batch}")
    return 1 if batch is None else batch


@contextmanager
def _evaluating(prior: Prior) -> Iterator[None]:
    """Eval mode inside, every module's own mode again afterwards."""
    modes = [(module, module.training) for module in prior.modules()]
    prior.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _device(prior: Prior) -> torch.device:
    return next(prior.parameters()).device


def _check_uniforms(uniforms: Tensor) -> None:
    _checks.floating("uniforms", uniforms)
    if uniforms.ndim < 2 or 0 in uniforms.shape:
        raise ValueError(f"uniforms must be [B, *shape], none of it 0, got {list(uniforms.shape)}")
    low, high = (float(end) for end in uniforms.aminmax())
    if not (low >= 0 and high < 1):
        raise ValueError(f"uniforms must be in [0, 1), got values from {low:g} to {high:g}")


def _check_options(temperature: float, top_k: int | None, top_p: float | None) -> None:
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be finite and above 0, got {temperature:g}")
    if top_k is not None:
        _checks.positive("top_k", top_k)
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p:g}")
