# SPDX-License-Identifier: Apache-2.0
"""The table of implementations: one row for each (op, backend), one place that chooses.

``reference`` is the specification and runs everywhere, ``native`` is the compiled library,
``triton`` the GPU kernels. They give the same answers. Under the automatic choice the first row
that runs on the tensor's device is taken; a backend asked for by name is used or refused, never
replaced.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvq import _checks, _native

NAMES = ("native", "triton", "reference")  # in order of preference
AUTOMATIC = "auto"
# what csrc/cuda has; the search takes few channels, and says so
_NATIVE_ON_CUDA = ("nearest", "quantize", "quantize_backward", "statistics")

# a process-wide choice: autograd runs backward in threads of its own, which a thread-local
# or context-local choice would not reach
_requested = os.environ.get("FASTVQ_BACKEND", AUTOMATIC)
_table: dict[tuple[str, str], Row] = {}


@dataclass(frozen=True)
class Row:
    """One implementation of one op.

    Attributes:
        load: imports what is needed and returns the launcher; called once.
        unavailable: why this row cannot take tensors on a device, or ``None`` when it can.
        automatic: device types on which the automatic choice may take this row; ``None`` for all.
    """

    load: Callable[[], Callable[..., Any]]
    unavailable: Callable[[str], str | None]
    automatic: tuple[str, ...] | None


class BackendStatus(NamedTuple):
    """What ``fastvq.backends()`` says of one backend."""

    name: str
    available: bool
    detail: str

    def __str__(self) -> str:
        return f"{self.name:<10} {'yes' if self.available else 'no':<4} {self.detail}"


def register(op: str, package: str) -> None:
    """Enters the three rows of ``op``, whose implementations live in ``package``."""
    # on cuda, triton comes first until a measurement says that native is faster there
    _table[op, "native"] = Row(
        functools.partial(_compiled, op), functools.partial(_native_unavailable, op), ("cpu",)
    )
    _table[op, "triton"] = Row(
        functools.partial(_launcher, f"{package}._triton", op), _triton_unavailable, ("cuda",)
    )
    _table[op, "reference"] = Row(
        functools.partial(_launcher, f"{package}.reference", op), _reference_unavailable, None
    )


def resolve(op: str, x: Tensor) -> Callable[..., Any]:
    """The launcher of ``op`` for tensors on the device of ``x``.

    Raises:
        ValueError: the requested backend is not one of the known names.
        RuntimeError: the requested backend cannot run here; the text says why.
    """
    return _load(op, chosen(op, x.device.type))


def chosen(op: str, device: str) -> str:
    """The backend that runs ``op`` on a device; raises as :func:`resolve` does."""
    if _requested != AUTOMATIC:
        _refuse_unavailable(op, _requested, device)
        return _requested
    for name in NAMES:
        row = _table[op, name]
        fits = row.automatic is None or device in row.automatic
        if fits and row.unavailable(device) is None and _loads(op, name):
            return name
    raise RuntimeError(
        f"no backend of fastvq runs {op} on device {device!r}: {_reference_unavailable(device)}"
    )


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Runs every op of fastvq on one backend: ``reference``, ``native`` or ``triton``.

    The choice holds for the whole process while the block runs, backward passes and compiled
    graphs included. A backend that cannot run raises at the first op; nothing falls back.

    Args:
        name: the backend, or ``auto`` to return to the automatic choice.

    Example:
        >>> import torch, fastvq
        >>> with fastvq.use_backend("reference"):
        ...     fastvq.ops.nearest(torch.ones(1, 2), torch.eye(2)).indices
        tensor([0])
    """
    global _requested
    _checks.one_of("backend", name, (*NAMES, AUTOMATIC))
    before, _requested = _requested, name
    try:
        yield
    finally:
        _requested = before


def backends() -> tuple[BackendStatus, ...]:
    """What can run here, and why the rest cannot.

    Returns:
        One status for each backend, in order of preference; each prints as one line.
    """
    return (
        _status("native", _native.reason(), _native_detail),
        _status("triton", _triton_unavailable("cuda"), _triton_detail),
        BackendStatus("reference", True, "pure PyTorch, every device with float64"),
    )


def _status(name: str, reason: str | None, detail: Callable[[], str]) -> BackendStatus:
    if reason is None:
        try:
            return BackendStatus(name, True, detail())
        except RuntimeError as error:
            # a bad FASTVQ_CPU_CAPABILITY, for one: what is wrong is what is asked for here
            reason = str(error)
    return BackendStatus(name, False, reason)


def _refuse_unavailable(op: str, name: str, device: str) -> None:
    _checks.one_of("FASTVQ_BACKEND", name, (*NAMES, AUTOMATIC))
    reason = _table[op, name].unavailable(device)
    if reason is not None:
        raise RuntimeError(
            f"backend {name!r} was asked for and cannot run {op} on device {device!r}: {reason}. "
            f"Known backends: {', '.join(NAMES)}; 'auto' chooses one that runs"
        )


@functools.cache
def _loads(op: str, name: str) -> bool:
    """Whether a row that is available loads; where not, that is breakage and is said, once."""
    try:
        _load(op, name)
    except Exception as error:
        warnings.warn(
            f"fastvq: backend {name!r} does not load for {op} and is skipped: "
            f"{type(error).__name__}: {error}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


@functools.cache
def _load(op: str, name: str) -> Callable[..., Any]:
    return _table[op, name].load()


def _launcher(module: str, op: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(module), op)


def _compiled(op: str) -> Callable[..., Any]:
    _native.load()
    return getattr(torch.ops.fastvq_native, op).default


def _reference_unavailable(device: str) -> str | None:
    if device == "mps":
        return "the reference works in float64, which mps lacks; move the tensors to the cpu"
    return None


def _native_unavailable(op: str, device: str) -> str | None:
    if device == "cuda":
        if op not in _NATIVE_ON_CUDA:
            return f"its kernels for cuda are {', '.join(_NATIVE_ON_CUDA)}"
        return _native.cuda_reason() or (None if _cuda_available() else "no CUDA device is visible")
    if device != "cpu":
        return f"it takes cpu and cuda tensors, got {device}"
    return _native.reason()


def _native_detail() -> str:
    level = torch.ops.fastvq_native.capability()
    on_cuda = _native.cuda_reason() or "on request"
    return f"compiled library for the cpu, instruction set in use: {level}; for cuda: {on_cuda}"


def _triton_unavailable(device: str) -> str | None:
    if not _has_triton():
        return "triton is not installed"
    if device == "cuda":
        return None if _cuda_available() else "no CUDA device is visible"
    if device == "cpu" and _interpreted():
        return None
    return f"its kernels take cuda tensors (or, with TRITON_INTERPRET=1, cpu ones), got {device}"


def _triton_detail() -> str:
    return f"GPU kernels on {torch.cuda.get_device_name()}"


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _cuda_available() -> bool:
    return torch.cuda.is_available()
