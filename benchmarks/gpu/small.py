# SPDX-License-Identifier: Apache-2.0
"""Small odd calls of every op, and steps of a codebook, on every backend of the device.

What a sanitizer watches.
"""

from __future__ import annotations

import torch

import fastvq
from benchmarks.gpu.setting import Setting, runs
from fastvq import testing

# (N, K, D): below a tile, above one, odd, wide
SHAPES = ((1, 1, 1), (33, 17, 5), (130, 70, 64), (65, 129, 300))


def main(device: str) -> None:
    for backend in Setting.of(device, quick=True).backends[:-1]:
        with fastvq.use_backend(backend):
            for shape in SHAPES:
                # native takes few channels only
                if backend == "native" and shape[2] > 8:
                    continue
                for dtype in (torch.float32, torch.bfloat16):
                    _call(device, shape, dtype)


def _call(device: str, shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    x, codebook = (t.to(device) for t in testing.gaussian(*shape, dtype=dtype))
    x[0, 0] = torch.nan
    x.requires_grad_()
    codebook.requires_grad_()
    indices = fastvq.ops.nearest(x, codebook).indices
    out = fastvq.ops.quantize(x, codebook, indices)
    total = out.quantized.sum() + out.commitment_loss + out.codebook_loss
    if runs("residual", device):
        total = total + fastvq.ops.residual(x, codebook.detach()[None]).commitment_losses.sum()
    total.backward()
    fastvq.ops.statistics(x, indices, shape[1], codebook=codebook)
    start = fastvq.Given(codebook.detach().float())
    for metric in ("euclidean", "cosine"):
        quantizer = fastvq.VectorQuantizer(shape[2], shape[1], metric=metric, start=start)
        for _ in range(2):
            quantizer.to(device)(x.detach().float())
    if device == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main("cuda")
