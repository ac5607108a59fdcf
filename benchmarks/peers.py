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


def dense_entropies(x: Tensor, codebook: Tensor, beta: float) -> Tensor:
    """Sample less batch entropy as LFQ, IBQ and LlamaGen write it: one softmax over all codes."""
    products = x @ codebook.t()
    squares = x.square().sum(-1, keepdim=True) + codebook.square().sum(-1) - 2 * products
    logits = -beta * squares
    probabilities, logarithms = logits.softmax(-1), logits.log_softmax(-1)
    mean = probabilities.mean(0)
    sample = -(probabilities * logarithms).sum(-1).mean()
    return sample + (mean * (mean + 1e-8).log()).sum()


class _ChunkedEntropies(torch.autograd.Function):
    """The strongest plain torch: as many rows at a time as fit the cache, twice each way."""

    @staticmethod
    def forward(ctx, x: Tensor, codebook: Tensor, beta: float) -> Tensor:
        ctx.beta, half = beta, codebook.square().sum(-1) * -beta
        mean, sample = torch.zeros_like(half), x.new_zeros(())
        for rows in x.split(_rows_of(codebook)):
            logarithms = torch.addmm(half, rows, codebook.t(), alpha=2 * beta).log_softmax(-1)
            probabilities = logarithms.exp()
            mean += probabilities.sum(0)
            sample -= torch.linalg.vecdot(probabilities, logarithms).sum()
        mean /= len(x)
        ctx.save_for_backward(x, codebook, mean)
        return sample / len(x) + torch.special.xlogy(mean, mean).sum()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, codebook, mean = ctx.saved_tensors
        beta, half = ctx.beta, codebook.square().sum(-1) * -ctx.beta
        tilt = mean.clamp_min(1e-30).log()
        grad_x, grad_codebook, weights = [], torch.zeros_like(codebook), torch.zeros_like(half)
        for rows in x.split(_rows_of(codebook)):
            logarithms = torch.addmm(half, rows, codebook.t(), alpha=2 * beta).log_softmax(-1)
            probabilities = logarithms.exp()
            terms = tilt - logarithms
            terms -= (probabilities * terms).sum(-1, keepdim=True)
            terms *= probabilities
            grad_x.append(terms @ codebook)
            grad_codebook.addmm_(terms.t(), rows)
            weights += terms.sum(0)
        grad_codebook -= weights.unsqueeze(-1) * codebook
        scale = 2 * beta * grad / len(x)
        return torch.cat(grad_x) * scale, grad_codebook * scale, None


def chunked_entropies(x: Tensor, codebook: Tensor, beta: float) -> Tensor:
    """The same value without N x K, by matrix products on chunks of rows."""
    return _ChunkedEntropies.apply(x, codebook, beta)


def _rows_of(codebook: Tensor) -> int:
    return max(1, _CHUNK_ELEMENTS // codebook.shape[0])


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
