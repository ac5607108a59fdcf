# SPDX-License-Identifier: Apache-2.0
"""The three streams that everything here is made of: schemas, and where implementations hang.

All see x as ``[H, N, D]`` and the codebook as ``[H, K, D]``, contiguous, finite and of one dtype,
float32 or float64; ``reference.py`` says what each computes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvq import _backends

torch.library.define(
    "fastvq::softmax_rows",
    "(Tensor x, Tensor codebook, Tensor bias, Tensor? indices, str metric, float scale)"
    " -> (Tensor maximum, Tensor log_sum, Tensor entropy, Tensor surprisal)",
)
torch.library.define(
    "fastvq::softmax_sums",
    "(Tensor x, Tensor codebook, Tensor bias, Tensor maximum, Tensor log_sum, Tensor factors,"
    " Tensor? code_factor, Tensor? direction, Tensor? axes, Tensor? values, bool by_code,"
    " str metric, float scale) -> (Tensor weights, Tensor totals)",
)
torch.library.define(
    "fastvq::softmax_samples",
    "(Tensor x, Tensor codebook, Tensor bias, Tensor keys, str metric, float scale) -> Tensor",
)


@torch.library.register_fake("fastvq::softmax_rows")
def _fake_rows(
    x: Tensor, codebook: Tensor, bias: Tensor, indices: Tensor | None, metric: str, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    first = x.new_empty(x.shape[:2])
    return first, torch.empty_like(first), torch.empty_like(first), torch.empty_like(first)


@torch.library.register_fake("fastvq::softmax_sums")
def _fake_sums(
    x: Tensor, codebook: Tensor, bias: Tensor, maximum: Tensor, log_sum: Tensor, factors: Tensor,
    code_factor: Tensor | None, direction: Tensor | None, axes: Tensor | None,
    values: Tensor | None, by_code: bool, metric: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (codebook if by_code else x).shape[:2]
    channels = 0 if values is None else values.shape[-1]
    return x.new_empty(shape), x.new_empty((*shape, channels))


@torch.library.register_fake("fastvq::softmax_samples")
def _fake_samples(
    x: Tensor, codebook: Tensor, bias: Tensor, keys: Tensor, metric: str, scale: float
) -> Tensor:
    return keys.new_empty(x.shape[:2])


@torch.library.impl("fastvq::softmax_rows", "default")
@torch.no_grad()
def _run_rows(
    x: Tensor, codebook: Tensor, bias: Tensor, indices: Tensor | None, metric: str, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    launch = _backends.resolve("softmax_rows", x)
    return launch(x, codebook, bias, indices, metric, scale)


@torch.library.impl("fastvq::softmax_sums", "default")
@torch.no_grad()
def _run_sums(
    x: Tensor, codebook: Tensor, bias: Tensor, maximum: Tensor, log_sum: Tensor, factors: Tensor,
    code_factor: Tensor | None, direction: Tensor | None, axes: Tensor | None,
    values: Tensor | None, by_code: bool, metric: str, scale: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    launch = _backends.resolve("softmax_sums", x)
    return launch(
        x, codebook, bias, maximum, log_sum, factors, code_factor, direction, axes, values,
        by_code, metric, scale,
    )  # fmt: skip


@torch.library.impl("fastvq::softmax_samples", "default")
@torch.no_grad()
def _run_samples(
    x: Tensor, codebook: Tensor, bias: Tensor, keys: Tensor, metric: str, scale: float
) -> Tensor:
    return _backends.resolve("softmax_samples", x)(x, codebook, bias, keys, metric, scale)


for _name in ("softmax_rows", "softmax_sums", "softmax_samples"):
    _backends.register(_name, "fastvq.ops.entropy")
softmax_rows = torch.ops.fastvq.softmax_rows.default
softmax_sums = torch.ops.fastvq.softmax_sums.default
softmax_samples = torch.ops.fastvq.softmax_samples.default
