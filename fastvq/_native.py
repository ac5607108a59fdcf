# SPDX-License-Identifier: Apache-2.0
"""Finds the compiled libraries, loads them on first use, and keeps the reason where it cannot.

A library that was not built is silent: the other backends do its work. One that is there and does
not load is a fault and warns, once.
"""

from __future__ import annotations

import functools
import importlib.machinery
import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).parent


@functools.cache
def reason() -> str | None:
    """Why the compiled library cannot be used; ``None`` where it can, and then it is loaded."""
    return _open("_C", "`FASTVQ_EXTENSION=require pip install ...` says what it lacked")


@functools.cache
def cuda_reason() -> str | None:
    """Why the kernels for CUDA cannot be used; ``None`` where they can, and then they are loaded.

    They are a library of their own, which adds them to the ops of the first one.
    """
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return reason() or _open(
        "_C_cuda", "it takes nvcc, and `FASTVQ_CUDA=require pip install ...` says what it lacked"
    )


def _open(name: str, advice: str) -> str | None:
    library = next(filter(Path.is_file, _places(name)), None)
    if library is None:
        return f"it was not built when fastvq was installed; {advice}"
    try:
        torch.ops.load_library(library)
    except OSError as error:
        fault = f"{library} does not load: {error}"
        warnings.warn(f"fastvq: {fault}", RuntimeWarning, stacklevel=3)
        return fault
    return None


def load() -> None:
    """Makes ``torch.ops.fastvq_native`` callable.

    Raises:
        ImportError: with :func:`reason`, where the library is absent or does not load.
    """
    missing = reason()
    if missing is not None:
        raise ImportError(f"the compiled library of fastvq cannot be used: {missing}")


def _places(name: str) -> list[Path]:
    return [_FOLDER / f"{name}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES]
