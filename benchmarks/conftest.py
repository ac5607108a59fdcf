# SPDX-License-Identifier: Apache-2.0
"""Rows with rates and memory, a table of ratios at the end, results kept as JSON."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from benchmarks import measure

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "triton", "numpy", "faiss-cpu", "scikit-learn", "vector-quantize-pytorch")
OURS = "fastvq "
ROUNDS = 7


@pytest.fixture
def row(benchmark, request):
    """Times one contender: ``row(group, contender, run, flops=..., wrong=...)``."""

    def record(
        group: str,
        contender: str,
        run: Callable[[], object],
        *,
        flops: float = 0.0,
        bytes_moved: float = 0.0,
        rounds: int = ROUNDS,
        certified: float | None = None,
    ) -> None:
        benchmark.group = f"{request.module.__name__.rpartition('bench_')[2]} {group}"
        benchmark.extra_info.update(contender=contender, peak_extra_bytes=_peak(run))
        benchmark.pedantic(run, rounds=rounds, warmup_rounds=1)
        if benchmark.stats is None:  # --benchmark-disable
            return
        median = benchmark.stats.stats.median
        if flops:
            benchmark.extra_info["tflops"] = flops / median / 1e12
        if certified is not None:
            benchmark.extra_info["certified"] = certified
        if bytes_moved:
            benchmark.extra_info["gb_per_s"] = bytes_moved / median / 1e9

    return record


def _peak(run: Callable[[], object]) -> int | None:
    run()
    return measure.peak_extra_bytes(run)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter, config) -> None:
    session = getattr(config, "_benchmarksession", None)
    rows = [b for b in session.benchmarks if b.stats.rounds] if session else []
    if not rows:
        return
    groups = defaultdict(dict)
    for bench in rows:
        info = {k: v for k, v in bench.extra_info.items() if k != "contender"}
        groups[bench.group][bench.extra_info["contender"]] = {
            "median_s": bench.stats.median,
            "iqr_s": bench.stats.iqr,
            "rounds": bench.stats.rounds,
            **info,
        }
    terminalreporter.section("times of each contender relative to fastvq in the same run")
    for line in _table(groups):
        terminalreporter.write_line(line)
    path = _save(groups)
    terminalreporter.write_line(f"\nresults kept in {path.relative_to(Path.cwd())}")


def _table(groups: dict) -> list[str]:
    lines = []
    ratios = defaultdict(list)
    for group, contenders in groups.items():
        ours = [c for c in contenders if c.startswith(OURS) and c != OURS + "reference"]
        best = min((contenders[c]["median_s"] for c in ours), default=None)
        lines.append(f"\n{group}")
        for name, row in sorted(contenders.items(), key=lambda item: item[1]["median_s"]):
            ratio = "" if best is None else f"{row['median_s'] / best:8.2f} x"
            rate = f"{row['tflops']:8.3f} TFLOP/s" if "tflops" in row else ""
            rate = f"{row['gb_per_s']:8.2f} GB/s" if "gb_per_s" in row else rate
            peak = row["peak_extra_bytes"]
            memory = "memory not measured" if peak is None else f"{peak / 2**20:9.1f} MiB extra"
            share = f"   certified {row['certified']:.2%}" if "certified" in row else ""
            pairs = row.get("bytes_per_pair")
            share += f"   {pairs:.2f} bytes a pair" if pairs is not None else ""
            lines.append(f"  {name:<32}{ratio:>11}{rate:>18}{memory:>22}{share}")
            if best is not None and name not in ours:
                ratios[group.split()[0], name].append(row["median_s"] / best)
    lines.append("\ngeometric mean over the shapes (above 1: fastvq is faster)")
    for (suite, name), values in ratios.items():
        mean = measure.geometric_mean(values)
        lines.append(f"  {suite:<12}{name:<32}{mean:8.2f} x   least {min(values):.2f} x")
    return lines


def _save(groups: dict) -> Path:
    """Merges this run's groups into the device's file."""
    device = measure.device_name()
    path = RESULTS / f"{measure.slug(device)}.json"
    known = json.loads(path.read_text())["groups"] if path.exists() else {}
    document = {
        "device": device,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "note": "median seconds of one run on a shared machine: read the ratios",
        "groups": {**known, **groups},
    }
    RESULTS.mkdir(exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(partial, path)
    return path


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        return subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            cwd=RESULTS.parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
