# SPDX-License-Identifier: Apache-2.0
"""What people run on a GPU today, called as their users call it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks import peers

Search = Callable[[Tensor, Tensor], Tensor]
# scores of a chunk that stay in the L2 of a large GPU, in float32
_CHUNK_ELEMENTS = 1 << 23


def cdist_argmin(x: Tensor, codebook: Tensor) -> Tensor:
    """``torch.cdist`` takes no 16-bit inputs: its users cast, and so does this."""
    return peers.cdist_argmin(x.float(), codebook.float())


def chunked_matmul() -> Search:
    """The strongest plain torch: product and argmax, compiled, a chunk of rows at a time."""

    def part(x: Tensor, transposed: Tensor, half: Tensor) -> Tensor:
        return (x @ transposed - half).argmax(-1)

    # past a handful of shapes torch would stop compiling, and say nothing
    torch.compiler.reset()
    compiled = torch.compile(part, dynamic=False)

    def search(x: Tensor, codebook: Tensor) -> Tensor:
        half = (codebook.float().square().sum(-1) / 2).to(x.dtype)
        # a power of two that divides most N: one compilation
        rows = 1 << max(6, (_CHUNK_ELEMENTS // len(codebook)).bit_length() - 1)
        transposed = codebook.t()
        return torch.cat([compiled(rows_, transposed, half) for rows_ in x.split(rows)])

    return search


def flash_kmeans() -> Search | None:
    """flash-kmeans' assignment, where it is installed."""
    if find_spec("flash_kmeans") is None:
        return None
    from flash_kmeans.assign_euclid_triton import euclid_assign_triton

    def search(x: Tensor, codebook: Tensor) -> Tensor:
        squares = x.float().square().sum(-1)
        return euclid_assign_triton(x[None], codebook[None], squares[None])[0].long()

    return search


# by name, the one that compiles longest last; each gives ``None`` where it is not installed
SEARCHES: dict[str, Callable[[], Search | None]] = {
    "flash-kmeans": flash_kmeans,
    "cdist+argmin": lambda: cdist_argmin,
    "matmul+argmax, compiled": chunked_matmul,
}


def needs_bytes(name: str, n: int, k: int) -> int:
    """Device memory of the scores that a rival forms."""
    return 12 * n * k if name == "cdist+argmin" else 0


class PlainQuantizer(torch.nn.Module):
    """A hand-written quantizer as in most repositories: cdist, one-hot sums, moving averages."""

    def __init__(self, codebook: Tensor) -> None:
        super().__init__()
        self.register_buffer("codes", codebook.clone())
        self.register_buffer("size", torch.ones(len(codebook), device=codebook.device))
        self.register_buffer("sums", codebook.clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        indices = torch.cdist(x.detach(), self.codes).argmin(-1)
        codes = self.codes[indices]
        loss = 0.25 * torch.nn.functional.mse_loss(x, codes)
        with torch.no_grad():
            hot = torch.nn.functional.one_hot(indices, len(self.codes)).to(x.dtype)
            self.size.lerp_(hot.sum(0), 0.01)
            self.sums.lerp_(hot.t() @ x, 0.01)
            self.codes.copy_(self.sums / self.size.clamp_min(1e-5).unsqueeze(-1))
        return x + (codes - x).detach(), indices, loss


def quantizers(codebook: Tensor) -> dict[str, torch.nn.Module]:
    """Quantizers to train beside ours."""
    found: dict[str, torch.nn.Module] = {"plain torch": PlainQuantizer(codebook)}
    if find_spec("vector_quantize_pytorch") is not None:
        k, d = codebook.shape
        theirs = peers.lucidrains(d, k).to(codebook.device)
        theirs._codebook.embed.copy_(codebook.unsqueeze(0))
        theirs._codebook.embed_avg.copy_(codebook.unsqueeze(0))
        found["lucidrains"] = theirs
    return found
