# SPDX-License-Identifier: Apache-2.0
"""Memory and rates, measured the same way for everybody."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

import fastvq

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")


def peak_extra_bytes(run: Callable[[], object]) -> int | None:
    """Memory that one call takes beyond what is resident before it, its result included.

    On the CPU the process's peak resident set, which sees every library's allocations; on a GPU
    the allocator's peak. ``None`` where neither can be read.
    """
    gc.collect()
    if torch.cuda.is_available():
        return peak_device_bytes(run)
    if not _CLEAR_REFS.exists():
        return None
    # pages that malloc keeps for itself would hide what the call takes from them
    ctypes.CDLL(None).malloc_trim(0)
    _CLEAR_REFS.write_text("5")
    before = _resident("VmRSS")
    result = run()
    peak = _resident("VmHWM")
    del result
    return max(0, peak - before)


def peak_device_bytes(run: Callable[[], object]) -> int:
    """Memory of the GPU that one call takes beyond what is allocated before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = run()
    torch.cuda.synchronize()
    del result
    return torch.cuda.max_memory_allocated() - before


def device_name() -> str:
    """The GPU's name, or the CPU's with its threads and the instruction set in use."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    native = next(s for s in fastvq.backends() if s.name == "native")
    found = re.search(r"instruction set in use: (\w+)", native.detail)
    level = found[1] if found else "no extension"
    return f"{_cpu_model()}, {torch.get_num_threads()} threads, {level}"


def slug(name: str) -> str:
    """A file name out of a device's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def geometric_mean(values: list[float]) -> float:
    """The mean for ratios."""
    return statistics.geometric_mean(values)


def _resident(field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", _STATUS.read_text())
    assert match is not None
    return int(match[1]) * 1024


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        if match:
            return match[1]
    return platform.processor() or platform.machine()
