# SPDX-License-Identifier: Apache-2.0
"""Times the cuts that the search could be launched with, and names the best row for its table."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from typing import Any

import torch

import fastvq
from benchmarks.gpu.measurements import Figures, vectors
from benchmarks.gpu.records import OK, Record
from benchmarks.gpu.running import Skip, Work
from benchmarks.gpu.setting import Setting
from benchmarks.gpu.timing import times
from benchmarks.gpu.wrong import wrong_share

# (N, K, D): a bucket of the table each, K on both sides of where the rescoring stops to count
BUCKETS = (
    *((1 << 18, 1024, 8), (1 << 18, 1024, 32), (1 << 18, 1024, 64), (1 << 18, 8192, 64)),
    *((1 << 17, 1024, 128), (1 << 17, 8192, 128), (1 << 17, 1024, 256), (1 << 17, 8192, 256)),
    *((1 << 16, 8192, 512), (1 << 16, 8192, 1024)),
)
QUICK_BUCKETS = BUCKETS[2:4]
# fewer rows than programs: the codes are shared out, in shares of at least LEAST tiles, or not
FEW_ROWS = tuple(
    (n, *shape)
    for n in (128, 4096)
    for shape in ((1024, 64), (1024, 128), (8192, 256), (8192, 512))
)
_WHOLE = 1 << 30
LEASTS = (1, 2, 4, 8, _WHOLE)
_SAMPLE = 200


def candidates(work: Any, device: Any) -> list[Any]:
    """The cuts worth a try besides the table's own."""
    tiling = import_module("fastvq.ops.nearest._triton_tiling")
    block = min(128, tiling.padded_channels(work.channels))
    cuts = []
    for codes, stages in ((64, 3), (128, 3 if work.channels <= 64 else 2)):
        # groups of 2 codes cost comparisons, groups of 16 cost rescoring
        for split in (split for split in (1, 2, 4, 8) if 2 <= codes // split // 4 <= 16):
            for registers in (128, 255) if work.channels <= 128 else (255,):
                cuts.append(tiling.Cut(128, codes, block, split, True, 8, stages, registers))
        cuts.append(tiling.Cut(128, codes, block, 4, True, 4, stages, 255))
        cuts.append(tiling.Cut(256, codes, block, 4, True, 8, stages, 255))
    if work.channels > 128:
        cuts += [
            tiling.Cut(128, codes, part, 8, False, 8, stages, 255)
            for codes, part in ((128, 64), (128, 128), (256, 32), (256, 64))
            for stages in (2, 3, 4)
        ]
    return [cut for cut in cuts if tiling.fits(work, cut, device)]


def compile_works(setting: Setting) -> Iterator[Work]:
    """Calls every candidate once on few rows, so that its kernels lie in the cache on disk."""
    yield from _works(setting, compile_only=True)


def tune_works(setting: Setting) -> Iterator[Work]:
    """Times every candidate."""
    yield from _works(setting, compile_only=False)


def _works(setting: Setting, *, compile_only: bool) -> Iterator[Work]:
    tiling = import_module("fastvq.ops.nearest._triton_tiling")
    device = import_module("fastvq.ops.nearest._triton")._device(torch.device("cuda", 0))
    for shape in QUICK_BUCKETS if setting.quick else BUCKETS:
        for dtype in (torch.bfloat16, torch.float32):
            work = tiling.Work(shape[2], shape[1], dtype != torch.float32, True)
            bucket = _bucket(shape, dtype)
            for cut in (None, *candidates(work, device)):
                name = f"{bucket} | {'as shipped' if cut is None else _row(shape[2], cut)}"
                run = partial(_try, shape, dtype, cut, tiling.LEAST, compile_only=compile_only)
                yield Work(name, partial(setting.on, "triton", run))
    for shape in () if setting.quick else FEW_ROWS:
        for dtype in (torch.bfloat16, torch.float32):
            for least in LEASTS:
                row = "as shipped" if least == tiling.LEAST else f"LEAST = {least}"
                name = f"N={shape[0]} {_bucket(shape, dtype)} | {row}"
                run = partial(_try, shape, dtype, None, least, compile_only=compile_only)
                yield Work(name, partial(setting.on, "triton", run))


def _bucket(shape: tuple[int, int, int], dtype: torch.dtype) -> str:
    return f"D={shape[2]} K={shape[1]} {str(dtype).removeprefix('torch.')}"


def _row(channels: int, cut: Any) -> str:
    return f"({channels}, _ANY, Cut({', '.join(map(str, cut))})),"


def _try(
    shape: tuple[int, int, int], dtype: torch.dtype, cut: Any, least: int, *, compile_only: bool
) -> Figures:
    rows = min(4096, shape[0]) if compile_only else shape[0]
    x, codebook = vectors((rows, *shape[1:]), dtype)
    with _launched_with(cut, least):
        try:
            found = fastvq.ops.nearest(x, codebook)
        except Exception as error:
            # shared memory or registers that are not there: an answer, not a fault
            raise Skip(f"cannot be launched: {type(error).__name__}: {error}") from error
        sample = torch.arange(0, rows, max(1, rows // _SAMPLE), device=x.device)
        wrong = wrong_share(x[sample], codebook, found.indices[sample])
        assert wrong == 0, f"a wrong code on {wrong:.2%} of the rows"
        if compile_only:
            return {}
        return {"best_ms": 1e3 * times(lambda: fastvq.ops.nearest(x, codebook)).best}


@contextlib.contextmanager
def _launched_with(cut: Any, least: int) -> Iterator[None]:
    tiling = import_module("fastvq.ops.nearest._triton_tiling")
    shipped = tiling.coarse_cut, tiling.LEAST
    tiling.LEAST = least
    if cut is not None:
        tiling.coarse_cut = lambda *_: cut
    tiling.search_tiling.cache_clear()
    try:
        yield
    finally:
        tiling.coarse_cut, tiling.LEAST = shipped
        tiling.search_tiling.cache_clear()


def winners(records: list[Record]) -> Iterator[str]:
    """One line for each bucket: the fastest row, ready for the table, and what it gains."""
    buckets: dict[str, dict[str, float]] = {}
    for record in records:
        bucket, _, row = record.name.partition(" | ")
        milliseconds = record.figures.get("best_ms")
        if record.status == OK and milliseconds is not None:
            buckets.setdefault(bucket, {})[row] = milliseconds
    for bucket, rows in buckets.items():
        best = min(rows, key=lambda row: rows[row])
        shipped = rows.get("as shipped")
        against = "" if shipped is None else f", as shipped {shipped:.4g} ms"
        yield f"{best}  # {bucket}: {rows[best]:.4g} ms{against}"
