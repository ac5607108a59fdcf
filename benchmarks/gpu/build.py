# SPDX-License-Identifier: Apache-2.0
"""Builds the compiled libraries that are missing; a failure is a line of the table."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import torch

from benchmarks.gpu import processes
from benchmarks.gpu.records import FAILED, OK, ROOT, SKIPPED, Record

SECTION = "build"
_PACKAGE = ROOT / "fastvq"


def build(seconds: float, package: Path = _PACKAGE) -> list[Record]:
    """Builds in place what this checkout lacks, and says what is there afterwards."""
    hindrance = no_cuda()
    wanted = ["_C", *(["_C_cuda"] if hindrance is None else [])]
    records = []
    if not all(_built(package, name) for name in wanted):
        records.append(_run([sys.executable, "setup.py", "build_ext", "--inplace"], seconds))
    for name in ("_C", "_C_cuda"):
        if _built(package, name):
            records.append(Record(SECTION, name, OK))
        else:
            why = hindrance if name == "_C_cuda" else None
            records.append(Record(SECTION, name, SKIPPED, why or "was not built"))
    return records


def no_cuda() -> str | None:
    """Why no kernels for CUDA can be built here."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", "nvcc")
    return None if shutil.which("nvcc") or home.exists() else "no nvcc"


def _built(package: Path, name: str) -> bool:
    return any(package.glob(f"{name}.*so"))


def _run(command: list[str], seconds: float) -> Record:
    name = "setup.py build_ext --inplace"
    status, said = processes.run(command, seconds)
    if status is None:
        return Record(SECTION, name, FAILED, f"not done within {seconds:.0f} s")
    return Record(SECTION, name, FAILED if status else OK, said[-2000:] if status else "")
