# SPDX-License-Identifier: Apache-2.0
"""What people use today, called as their users call it. Nothing here is tuned against them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Search = Callable[[Tensor, Tensor], Tensor]

# rows whose scores fit a few MiB: the fastest chunking of the plain form on common CPUs
_CHUNK_ELEMENTS = 1 << 20


def matmul_alone(x: Tensor, codebook: Tensor) -> Tensor:
    """No search at all: the bare product ``x @ c.T``, the floor of every expanded form."""
    return x @ codebook.t()


def cdist_argmin(x: Tensor, codebook: Tensor) -> Tensor:
    """The three-token search of most hand-written quantizers."""
    return torch.cdist(x, codebook).argmin(-1)


def chunked_addmm_argmax(x: Tensor, codebook: Tensor) -> Tensor:
    """The strongest plain torch: x.c - |c|^2 / 2, a cache-sized chunk of rows at a time."""
    half = codebook.square().sum(-1) / -2
    rows = max(64, _CHUNK_ELEMENTS // codebook.shape[0])
    transposed = codebook.t()
    return torch.cat([torch.addmm(half, part, transposed).argmax(-1) for part in x.split(rows)])


def faiss_flat(x: Tensor, codebook: Tensor) -> Tensor:
    """FAISS IndexFlatL2, k = 1, building the index included as a codebook changes every step."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def sklearn_argmin(x: Tensor, codebook: Tensor) -> Tensor:
    """scikit-learn's pairwise_distances_argmin, whose reduction is fused and parallel."""
    from sklearn.metrics import pairwise_distances_argmin

    return torch.from_numpy(pairwise_distances_argmin(x.numpy(), codebook.numpy()))


SEARCHES: dict[str, Search] = {
    "torch cdist+argmin": cdist_argmin,
    "torch addmm+argmax, chunked": chunked_addmm_argmax,
    "FAISS IndexFlatL2": faiss_flat,
    "scikit-learn": sklearn_argmin,
}


def lucidrains(dim: int, codebook_size: int) -> torch.nn.Module:
    """lucidrains' VectorQuantize with the plain straight-through gradient and the same decay."""
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(
        dim=dim,
        codebook_size=codebook_size,
        decay=0.99,
        commitment_weight=0.25,
        rotation_trick=False,
    )


def lucidrains_residual(dim: int, codebook_size: int, levels: int) -> torch.nn.Module:
    """lucidrains' ResidualVQ with the same settings at every level."""
    from vector_quantize_pytorch import ResidualVQ

    return ResidualVQ(
        dim=dim,
        codebook_size=codebook_size,
        num_quantizers=levels,
        decay=0.99,
        commitment_weight=0.25,
        rotation_trick=False,
    )


def lucidrains_grouped(dim: int, codebook_size: int, levels: int, groups: int) -> torch.nn.Module:
    """lucidrains' GroupedResidualVQ with the same settings in every group."""
    from vector_quantize_pytorch import GroupedResidualVQ

    return GroupedResidualVQ(
        dim=dim,
        groups=groups,
        codebook_size=codebook_size,
        num_quantizers=levels,
        decay=0.99,
        commitment_weight=0.25,
        rotation_trick=False,
    )


def faiss_beam(x: Tensor, codebooks: Tensor, beam: int) -> Callable[[], Tensor]:
    """FAISS's ResidualQuantizer with the given codebooks ``[Q, K, D]``; K a power of two."""
    import faiss

    levels, k, d = codebooks.shape
    faiss.omp_set_num_threads(torch.get_num_threads())
    quantizer = faiss.ResidualQuantizer(d, levels, k.bit_length() - 1)
    quantizer.max_beam_size = beam
    faiss.copy_array_to_vector(codebooks.numpy().ravel(), quantizer.codebooks)
    quantizer.is_trained = True
    rows = x.numpy()

    def run() -> Tensor:
        packed = torch.from_numpy(quantizer.compute_codes(rows))
        bits = (packed.unsqueeze(-1) >> torch.arange(8)) & 1  # little-endian, code after code
        width = k.bit_length() - 1
        used = bits.flatten(1)[:, : levels * width].unflatten(1, (levels, width)).long()
        return (used << torch.arange(width)).sum(-1)

    return run
