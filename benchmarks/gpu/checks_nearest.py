# SPDX-License-Identifier: Apache-2.0
"""``nearest`` on the device, against float64: every backend, on inputs chosen to break it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

import fastvq
from benchmarks.gpu.running import Work
from benchmarks.gpu.setting import NARROW_SHAPES, SEARCH_SHAPES, WIDE_SHAPES, Setting
from fastvq import testing
from fastvq.ops import nearest

METRICS = ("euclidean", "cosine", "dot")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
# around every step of a tile of channels, of a padding and of a row of the kernel's table
CHANNELS = (
    *(1, 2, 3, 5, 8, 15, 16, 17, 31, 32, 33, 48, 63, 64, 65, 96, 100, 127, 128, 129),
    *(160, 192, 255, 256, 257, 320, 512, 513, 700, 1024, 1100),
)
QUICK_CHANNELS = (3, 40)
QUICK_CASES = ("bad_rows",)
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels first": lambda x: testing.channels_first(x, 4, 5),
    "transposed": lambda x: x.t().contiguous().t(),
    "every other row": lambda x: x.repeat_interleave(2, 0)[::2],
    "slice of channels": lambda x: torch.cat([x + 9, x, x - 9], 1)[:, 24:48],
    "expanded": lambda x: x[:1].expand(7, -1),
    "permuted": lambda x: x.unflatten(0, (3, 4, 5)).permute(2, 0, 1, 3),
}


def works(setting: Setting) -> Iterator[Work]:
    for backend in setting.backends:
        for name, run in _checks(setting):
            yield Work(f"nearest {backend}: {name}", partial(setting.on, backend, run))


def _checks(setting: Setting) -> Iterator[tuple[str, Callable[[], None]]]:
    device, quick = setting.device, setting.quick
    if not quick:
        # what is timed later, at a size that float64 can check: compiles the same kernels
        for _, k, d in SEARCH_SHAPES + WIDE_SHAPES + NARROW_SHAPES:
            for dtype in (torch.float32, torch.bfloat16):
                make = partial(testing.clustered, 4096, min(k, 8192), d)
                run = partial(_as_timed, device, partial(_cast, make, dtype, dtype))
                yield f"as timed, K = {k} D = {d} {_short(dtype)}", run
    for case in testing.NEAREST_CASES:
        if not quick or case.name in QUICK_CASES:
            for metric in METRICS[: 1 if quick else 3]:
                yield f"{case.name} {metric}", partial(_exact, device, case.make, metric)
    for shape in testing.SHAPES:
        for dtype in DTYPES:
            if not quick or (dtype == torch.float32 and max(shape) < 10):
                make = partial(testing.gaussian, *shape, dtype=dtype)
                yield f"{_by(shape)} {_short(dtype)}", partial(_exact, device, make)
    for x_dtype in DTYPES[: 1 if quick else 4]:
        for c_dtype in DTYPES[: 2 if quick else 4]:
            make = partial(_cast, partial(testing.gaussian, 40, 30, 20), x_dtype, c_dtype)
            name = f"{_short(x_dtype)} in {_short(c_dtype)}"
            yield name, partial(_exact, device, make)
    for name, view in list(VIEWS.items())[: 1 if quick else None]:
        yield f"view, {name}", partial(_view, device, view)
    yield "heads", partial(_heads, device)
    yield "same bits", partial(_same_bits, device, 20 if quick else 20_000)
    yield "bad rows apart", partial(_bad_rows, device)
    yield "fast is near", partial(_fast, device, partial(testing.gaussian, 300, 100, 32))
    # a compilation each, so they come last
    for d in QUICK_CHANNELS if quick else CHANNELS:
        for dtype in (torch.float32, torch.bfloat16):
            make = partial(testing.gaussian, 20 if quick else 400, 90 if quick else 300, d)
            run = partial(_exact, device, partial(_cast, make, dtype, dtype))
            yield f"D = {d} {_short(dtype)}", run


def _exact(
    device: str, make: Callable[[], tuple[Tensor, Tensor]], metric: str = "euclidean"
) -> None:
    x, codebook = (t.to(device) for t in make())
    testing.assert_nearest(x, codebook, nearest(x, codebook, metric=metric), metric)


def _cast(
    make: Callable[[], tuple[Tensor, Tensor]], x_dtype: torch.dtype, c_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    x, codebook = make()
    return x.to(x_dtype), codebook.to(c_dtype)


def _view(device: str, view: Callable[[Tensor], Tensor]) -> None:
    x, codebook = (t.to(device) for t in testing.gaussian(60, 70, 24))
    strided = view(x)
    copy = strided.contiguous().clone()
    testing.assert_nearest(
        copy.flatten(0, -2), codebook, _flat(nearest(strided, codebook)), "euclidean"
    )
    _equal(nearest(strided, codebook), nearest(copy, codebook))


def _heads(device: str) -> None:
    x, codebook = torch.randn(6, 5, 3, 8).to(device), torch.randn(3, 40, 8).to(device)
    result = nearest(x, codebook)
    for h in range(3):
        rows = x[:, :, h].flatten(0, 1).contiguous()
        mine = fastvq.ops.Nearest(*(t[:, :, h].flatten() for t in result))
        testing.assert_nearest(rows, codebook[h], mine)


def _same_bits(device: str, rows: int) -> None:
    x, codebook = (t.to(device) for t in testing.gaussian(rows, 90, 40))
    first = nearest(x, codebook)
    for _ in range(3):
        _equal(first, nearest(x, codebook))
    order = torch.randperm(rows, device=device)
    _equal(fastvq.ops.Nearest(*(t[order] for t in first)), nearest(x[order], codebook))


def _bad_rows(device: str) -> None:
    x, codebook = (t.to(device) for t in testing.gaussian(200, 40, 16))
    clean = nearest(x, codebook)
    x[3, 5], x[130, 0] = torch.nan, torch.inf
    spoiled = nearest(x, codebook)
    good = torch.isfinite(x).all(-1)
    _equal(*(fastvq.ops.Nearest(*(t[good] for t in r)) for r in (clean, spoiled)))
    assert spoiled.indices[~good].tolist() == [0, 0]
    assert spoiled.distances[~good].isnan().all()


def _as_timed(device: str, make: Callable[[], tuple[Tensor, Tensor]]) -> None:
    _exact(device, make)
    _fast(device, make)


def _fast(device: str, make: Callable[[], tuple[Tensor, Tensor]]) -> None:
    x, codebook = (t.to(device) for t in make())
    distances = testing.exact_distances(x, codebook)
    fast = nearest(x, codebook, precision="fast").indices
    chosen = distances.gather(1, fast.unsqueeze(1)).squeeze(1)
    # the coarsest first pass works in bfloat16: 2^-8 for each factor of the product terms
    norms = x.double().norm(dim=1) * codebook.double().norm(dim=1).max()
    assert (chosen - distances.amin(1) <= 4 * 2**-8 * norms).all()


def _flat(result: fastvq.ops.Nearest) -> fastvq.ops.Nearest:
    return fastvq.ops.Nearest(*(t.flatten() for t in result))


def _equal(one: fastvq.ops.Nearest, other: fastvq.ops.Nearest) -> None:
    assert torch.equal(one.indices, other.indices), "indices differ"
    same = torch.equal(one.distances.nan_to_num(-7), other.distances.nan_to_num(-7))
    assert same, "distances differ"


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
