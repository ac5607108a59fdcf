# SPDX-License-Identifier: Apache-2.0
"""What may enter a public function. One style: what was expected, then what came."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def one_of(name: str, value: object, known: Iterable[str]) -> None:
    """Raises ``ValueError`` unless ``value`` is one of ``known``, naming the nearest known one."""
    known = tuple(known)
    if value in known:
        return
    near = difflib.get_close_matches(str(value), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}{hint}")


def floating(name: str, tensor: Tensor) -> None:
    """Raises ``TypeError`` unless ``tensor`` is a float32, float16, bfloat16 or float64 tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in FLOATING:
        raise TypeError(
            f"{name} must be float32, float16, bfloat16 or float64, got {dtype_name(tensor)}"
        )


def same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raises ``ValueError`` unless the two tensors live on one device."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} and {other_name} must be on one device, got {tensor.device} and {other.device}"
        )


def codebook(x: Tensor, codebook: Tensor) -> None:
    """Checks x ``[..., D]`` with codebook ``[K, D]``, or x ``[..., H, D]`` with ``[H, K, D]``."""
    floating("x", x)
    floating("codebook", codebook)
    same_device("x", x, "codebook", codebook)
    if codebook.ndim not in (2, 3):
        raise ValueError(f"codebook must be [K, D] or [H, K, D], got {shape(codebook)}")
    if codebook.shape[-2] == 0:
        raise ValueError(f"codebook must hold at least one code, got {shape(codebook)}")
    if x.ndim < codebook.ndim - 1:
        wanted = "[..., D]" if codebook.ndim == 2 else "[..., H, D]"
        raise ValueError(
            f"x must be {wanted} for a codebook of shape {shape(codebook)}, got {shape(x)}"
        )
    if x.shape[-1] == 0:
        raise ValueError(f"x must have at least one channel in its last dimension, got {shape(x)}")
    if codebook.ndim == 2 and codebook.shape[1] != x.shape[-1]:
        raise ValueError(
            f"codebook must be [K, D] with D = {x.shape[-1]}, the last dimension of x, "
            f"got {shape(codebook)}"
        )
    if codebook.ndim == 3 and (codebook.shape[0], codebook.shape[2]) != tuple(x.shape[-2:]):
        raise ValueError(
            f"codebook must be [H, K, D] with H = {x.shape[-2]}, D = {x.shape[-1]}, "
            f"the last dimensions of x, got {shape(codebook)}"
        )


def indices(indices: Tensor, x: Tensor) -> None:
    """Checks int64 indices of the shape of x without its last dimension."""
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be a tensor, got {type(indices).__name__}")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {dtype_name(indices)}")
    if indices.shape != x.shape[:-1]:
        raise ValueError(
            f"indices must be {list(x.shape[:-1])}, the shape of x without its last dimension, "
            f"got {shape(indices)}"
        )
    same_device("indices", indices, "x", x)


def integers(name: str, tensor: Tensor) -> None:
    """Raises ``TypeError`` unless ``tensor`` is an integer tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in INTEGER:
        raise TypeError(f"{name} must be integers, got {dtype_name(tensor)}")


def index_range(indices: Tensor, num_codes: int) -> None:
    """Raises ``IndexError`` for an index outside [-1, K).

    On the CPU and outside compilation only: a GPU would have to wait for the answer, and a graph
    cannot branch on it.
    """
    if indices.device.type != "cpu" or torch.compiler.is_compiling() or indices.numel() == 0:
        return
    # as Python ints: a narrow tensor would wrap the bounds to its own dtype
    low, high = (int(end) for end in indices.aminmax())
    if low < -1 or high >= num_codes:
        worst = low if low < -1 else high
        raise IndexError(f"indices must be in [-1, K = {num_codes}), got {worst}")


def instance(name: str, value: object, *types: type) -> None:
    """Raises ``TypeError`` unless ``value`` is an instance of one of ``types``."""
    if not isinstance(value, types):
        known = ", ".join(f"{t.__name__}(...)" for t in types)
        raise TypeError(f"{name} must be one of {known}, got {value!r}")


def positive(name: str, value: object) -> None:
    """Raises unless ``value`` is an int above zero."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value <= 0:
        raise ValueError(f"{name} must be at least 1, got {value}")


def fraction(name: str, value: object, *, low: float = 0.0, high: float = 1.0) -> None:
    """Raises unless ``low <= value < high``."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not low <= value < high:
        raise ValueError(f"{name} must be in [{low:g}, {high:g}), got {value:g}")


def shape(tensor: Tensor) -> list[int]:
    """The shape as a list, which prints as users write it."""
    return list(tensor.shape)


def dtype_name(tensor: Tensor) -> str:
    """``float32`` rather than ``torch.float32``."""
    return str(tensor.dtype).removeprefix("torch.")
