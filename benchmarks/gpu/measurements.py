# SPDX-License-Identifier: Apache-2.0
"""How fast: each op over the shapes that people use, beside its rivals and the device's rates.

A search is timed after its answer was held against float64 on a sample; one of ours that is wrong
is a failure, a rival's share of wrong rows stands in its line.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from importlib import import_module

import torch
from torch import Tensor

import fastvq
from benchmarks.gpu import rivals
from benchmarks.gpu.running import Skip, Work
from benchmarks.gpu.setting import (
    NARROW_SHAPES,
    RESIDUAL_SHAPE,
    SEARCH_SHAPES,
    STEP_SHAPES,
    WIDE_SHAPES,
    Setting,
)
from benchmarks.gpu.timing import Rates, Times, peak_bytes, times
from benchmarks.gpu.wrong import wrong_share

DTYPES = (torch.bfloat16, torch.float32)
_SAMPLE = 200
Figures = dict[str, float | None]
# seconds of our best backend, by shape and dtype
Known = dict[tuple[tuple[int, int, int], torch.dtype], float]
rates = cache(Rates.measured)


def search_works(setting: Setting) -> Iterator[Work]:
    """``nearest``, ours first; then what the exactness of float32 costs."""
    yield Work("device rates", _rates)
    ours: Known = {}
    shapes = SEARCH_SHAPES[:2] if setting.quick else SEARCH_SHAPES + WIDE_SHAPES
    narrow = () if setting.quick else NARROW_SHAPES
    for shape in shapes + narrow:
        for dtype in DTYPES:
            for backend in setting.backends[:-1]:
                name = f"{_by(shape)} {_short(dtype)} fastvq {backend}"
                run = partial(_ours, shape, dtype, ours)
                yield Work(name, partial(setting.on, backend, run))
        yield Work(f"{_by(shape)} float32 over bfloat16", partial(_exactness, shape, ours))
    for rival in rivals.SEARCHES:
        for dtype in DTYPES:
            for shape in shapes:
                name = f"{_by(shape)} {_short(dtype)} {rival}"
                yield Work(name, partial(_rival, rival, shape, dtype, ours))


def _rates() -> Figures:
    found = rates()
    return {"copy_TB/s": found.copy / 1e12, "bf16_product_TFLOP/s": found.product / 1e12}


def _ours(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    known: Known,
) -> Figures:
    x, codebook = vectors(shape, dtype)
    result = fastvq.ops.nearest(x, codebook)
    sample = torch.randperm(len(x), device=x.device)[:_SAMPLE]
    wrong = wrong_share(x[sample], codebook, result.indices[sample])
    assert wrong == 0, f"a wrong code on {wrong:.2%} of the rows: not timed"
    taken = times(lambda: fastvq.ops.nearest(x, codebook))
    known[shape, dtype] = min(taken.best, known.get((shape, dtype), taken.best))
    figures = _search_figures(shape, dtype, taken)
    fast = times(lambda: fastvq.ops.nearest(x, codebook, precision="fast"))
    return {**figures, "fast_ms": 1e3 * fast.best, **certified(x, codebook)}


def _rival(
    name: str,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    ours: Known,
) -> Figures:
    search = rivals.SEARCHES[name]()
    if search is None:
        raise Skip("not installed")
    n, k, _ = shape
    needed, free = rivals.needs_bytes(name, n, k), torch.cuda.mem_get_info()[0]
    if needed > 0.8 * free:
        raise Skip(f"would take {needed >> 30} GiB of device memory")
    x, codebook = vectors(shape, dtype)
    sample = torch.randperm(len(x), device=x.device)[:_SAMPLE]
    wrong = wrong_share(x[sample], codebook, search(x, codebook)[sample])
    taken = times(lambda: search(x, codebook))
    mine = ours.get((shape, dtype))
    ratio = None if mine is None else taken.best / mine
    return {**_search_figures(shape, dtype, taken), "wrong": wrong, "times_ours": ratio}


def _search_figures(shape: tuple[int, int, int], dtype: torch.dtype, taken: Times) -> Figures:
    n, k, d = shape
    flops = 2.0 * n * k * d
    # x and the codes read, int64 indices and float32 distances written
    moved = (n + k) * d * dtype.itemsize + 12.0 * n
    return {
        "ms": 1e3 * taken.eager,
        "graph_ms": None if taken.graph is None else 1e3 * taken.graph,
        "TFLOP/s": flops / taken.best / 1e12,
        "of_product_rate": flops / taken.best / rates().product,
        "of_roofline": rates().floor(flops, moved) / taken.best,
    }


def _exactness(shape: tuple[int, int, int], ours: Known) -> Figures:
    exact, half = (ours.get((shape, t)) for t in (torch.float32, torch.bfloat16))
    if exact is None or half is None:
        raise Skip("one of the two was not timed in this process")
    return {"ratio": exact / half}


def certified(x: Tensor, codebook: Tensor) -> Figures:
    """Shares of the rows that the coarse and the fine pass of the Triton search prove."""
    module = import_module("fastvq.ops.nearest._triton")
    encode, seen = module.prepare, []

    def watched(*args, **options):
        seen.append(encode(*args, **options))
        return seen[-1]

    module.prepare = watched
    try:
        fastvq.ops.nearest(x, codebook)
    finally:
        module.prepare = encode
    if not seen:
        return {}
    state = seen[0].state[0].tolist()
    counts = (state[module.PENDING.value], state[module.UNRESOLVED.value])
    coarse, proven = (1 - count / len(x) for count in counts)
    return {"coarse_proves": coarse, "proven_before_float64": proven}


def statistics_works(setting: Setting) -> Iterator[Work]:
    """Counts and sums, and the lookup with its gradient, against the copy rate."""
    yield Work("device rates", _rates)
    for shape in STEP_SHAPES if setting.quick else (*SEARCH_SHAPES[:3], SEARCH_SHAPES[5]):
        for dtype in DTYPES:
            label = f"{_by(shape)} {_short(dtype)}"
            for backend in setting.backends[:-1]:
                for op, run in (("statistics", _statistics), ("quantize", _quantize)):
                    name = f"{op} {label} fastvq {backend}"
                    yield Work(name, partial(setting.on, backend, partial(run, shape, dtype)))
            yield Work(f"statistics {label} scatter", partial(_scatter, shape, dtype))


def _statistics(shape: tuple[int, int, int], dtype: torch.dtype) -> Figures:
    x, _ = vectors(shape, dtype)
    indices = torch.randint(shape[1], (len(x),), device=x.device)
    taken = times(lambda: fastvq.ops.statistics(x, indices, shape[1]))
    return _copy_figures(taken, x.nbytes + indices.nbytes + 4 * shape[1] * (shape[2] + 1))


def _scatter(shape: tuple[int, int, int], dtype: torch.dtype) -> Figures:
    """Float atomics: what torch does, in an order that changes."""
    x, _ = vectors(shape, dtype)
    indices = torch.randint(shape[1], (len(x),), device=x.device)
    sums = torch.zeros(shape[1], shape[2], device=x.device)
    taken = times(lambda: sums.index_add_(0, indices, x.float()))
    return _copy_figures(taken, x.nbytes + indices.nbytes + 4 * shape[1] * (shape[2] + 1))


def _quantize(shape: tuple[int, int, int], dtype: torch.dtype) -> Figures:
    x, codebook = vectors(shape, dtype)
    indices = torch.randint(shape[1], (len(x),), device=x.device)
    forward = times(lambda: fastvq.ops.quantize(x, codebook, indices))
    factor = torch.ones((), device=x.device)
    rows, index, codes = x[None, :, None], indices[None, :, None], codebook[None]
    backward = times(
        lambda: torch.ops.fastvq.quantize_backward.default(rows, factor, rows, codes, index)
    )
    found = _copy_figures(forward, 2 * x.nbytes + indices.nbytes)
    back = _copy_figures(backward, 3 * x.nbytes + indices.nbytes)
    return {**found, **{f"backward_{name}": value for name, value in back.items()}}


def _copy_figures(taken: Times, moved: float) -> Figures:
    rate = moved / taken.best
    graph = None if taken.graph is None else 1e3 * taken.graph
    return {"ms": 1e3 * taken.eager, "graph_ms": graph, "of_copy_rate": rate / rates().copy}


def step_works(setting: Setting) -> Iterator[Work]:
    """Residual quantization, and a training step with the memory that it takes."""
    levels, n, k, d = RESIDUAL_SHAPE
    for backend in setting.backends[:-1]:
        name = f"residual {levels} x {_by((n, k, d))} fastvq {backend}"
        yield Work(name, partial(setting.on, backend, _residual))
    for shape in STEP_SHAPES:
        ours: dict[str, tuple[float, int]] = {}
        for backend in setting.backends[:-1]:
            run = partial(_step, shape, "fastvq", ours)
            yield Work(f"step {_by(shape)} fastvq {backend}", partial(setting.on, backend, run))
        for name in ("plain torch", "lucidrains"):
            yield Work(f"step {_by(shape)} {name}", partial(_step, shape, name, ours))


def _residual() -> Figures:
    levels, n, k, d = RESIDUAL_SHAPE
    x, codebook = vectors((n, k, d), torch.float32)
    scales = 2.0 ** -torch.arange(levels, device=x.device)
    codebooks = codebook * scales[:, None, None]
    taken = times(lambda: fastvq.ops.residual(x, codebooks))
    flops = 2.0 * levels * n * k * d
    share = flops / taken.best / rates().product
    return {"ms": 1e3 * taken.eager, "graph_ms": _ms(taken.graph), "of_product_rate": share}


def _step(shape: tuple[int, int, int], name: str, ours: dict[str, tuple[float, int]]) -> Figures:
    n, k, d = shape
    x, codebook = vectors(shape, torch.float32)
    quantizer = (
        fastvq.VectorQuantizer(d, k, start=fastvq.Given(codebook)).to(x.device)
        if name == "fastvq"
        else rivals.quantizers(codebook).get(name)
    )
    if quantizer is None:
        raise Skip("not installed")
    x.requires_grad_()
    cotangent = torch.randn_like(x)

    def step() -> None:
        quantized, _, loss = quantizer(x)
        torch.autograd.backward((quantized, loss), (cotangent, torch.ones_like(loss)))
        x.grad = None

    peak = peak_bytes(step)
    taken = times(step, waits=name != "fastvq")
    figures: Figures = {"ms": 1e3 * taken.eager, "graph_ms": _ms(taken.graph)}
    figures["peak_MiB"] = peak / 2**20
    if name == "fastvq":
        ours.setdefault(name, (taken.best, peak))
    elif "fastvq" in ours:
        figures["times_ours"] = taken.best / ours["fastvq"][0]
        figures["peak_times_ours"] = peak / ours["fastvq"][1]
    return figures


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def vectors(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Unit Gaussians, made on the device: the worst case for a certificate."""
    n, k, d = shape
    generator = torch.Generator(device="cuda").manual_seed(0)
    x = torch.empty(n, d, dtype=torch.float32, device="cuda").normal_(generator=generator)
    codebook = torch.randn(k, d, device="cuda", generator=generator)
    return x.to(dtype), codebook.to(dtype)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
