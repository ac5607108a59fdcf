# SPDX-License-Identifier: Apache-2.0
"""What is measured, defined once: squared error, PSNR, use of the codebooks, rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastvq.data import ExampleSet
from fastvq.models import AutoEncoder, Coder, WaveNetVQVAE
from fastvq.models.likelihoods import Discrete
from fastvq.priors import per_position_bits

# values at a time in evaluation, at least one example; bounds the memory, and fixes the order of
# summation
_VALUES = 2**18
_EXAMPLES = 256


class Use(NamedTuple):
    """How the codes of a whole split use a codebook, or the G codebooks of a level.

    Attributes:
        perplexity: exp of the entropy of the histogram of the codes; 1 to K. Of several codebooks
            exp of the mean of their entropies.
        codes_used: codes that occur at all, at most G K.
        largest_share: share of the most frequent code in its codebook.
    """

    perplexity: float
    codes_used: int
    largest_share: float


class Reconstruction(NamedTuple):
    """What a VQ-VAE keeps of a split.

    Attributes:
        mse: mean squared error per value, data in [0, 1], reconstructions clamped to it, padding
            left out; ``None`` where a reconstruction is drawn sample by sample.
        psnr: ``-10 log10(mse)`` in dB; infinite at mse 0.
        reconstruction_bits_per_dim: ``-log2 p(x | codes)`` per value; ``None`` for a model of
            squared errors. Padding is paid for, so that the bound holds.
        bits_per_dim: that and the nominal bits of the codes.
        bits_per_example: nominal, codes times log2 K.
        bits_per_pixel: that over the pixels of an image or a clip, or the samples of a signal.
        use: of the codes of each level, the top first.
        codebook_sizes: K of each level, the top first.
        examples: examples measured.
    """

    mse: float | None
    psnr: float | None
    reconstruction_bits_per_dim: float | None
    bits_per_dim: float | None
    bits_per_example: float
    bits_per_pixel: float
    use: tuple[Use, ...]
    codebook_sizes: tuple[int, ...]
    examples: int


def psnr(mse: float) -> float:
    """``-10 log10(mse)`` in dB for data in [0, 1]; infinite at 0."""
    return -10 * math.log10(mse) if mse > 0 else math.inf


def use(codes: Tensor, codebook_size: int, codebooks: int = 1) -> Use:
    """The use of codebooks by int64 ``codes``, at least one, of G codebooks ``[..., G]``."""
    books = codes.cpu().reshape(-1, codebooks)
    counts = torch.stack([torch.bincount(book, minlength=codebook_size) for book in books.T])
    perplexity = 2 ** order0_bits(codes, codebook_size, codebooks)
    return Use(perplexity, int((counts > 0).sum()), float(counts.max() / len(books)))


def order0_bits(codes: Tensor, codebook_size: int, codebooks: int = 1) -> float:
    """Entropy of the histogram of all codes, averaged over the codebooks of ``codes [..., G]``."""
    return per_position_bits(codes.cpu().reshape(-1, codebooks), codebook_size)


@torch.no_grad()
def evaluate_reconstruction(model: Coder, examples: ExampleSet) -> Reconstruction:
    """Measures a model, in eval mode, on a whole split.

    Args:
        model: on any device.
        examples: padded to multiples of the model's stride.
    """
    parts, sizes = [], model.level_codebook_sizes
    squared = nats = 0.0
    for positions, batch in batches(examples):
        found = _measured(model, batch, examples, positions)
        squared, nats = squared + found.squared, nats + found.nats
        parts.append(found.grids)
    pixels = math.prod(examples.size)
    values = len(examples) * examples.channels * pixels
    bits = model.nominal_bits(*padded_size(examples))
    reconstruction = None if math.isnan(nats) else nats / math.log(2) / values
    mse = None if math.isnan(squared) else squared / values
    return Reconstruction(
        mse,
        None if mse is None else psnr(mse),
        reconstruction,
        None if reconstruction is None else reconstruction + bits / (examples.channels * pixels),
        bits,
        bits / pixels,
        tuple(
            use(grid, size, model.config.codebooks)
            for grid, size in zip(joined(parts), sizes, strict=True)
        ),
        codebook_sizes=sizes,
        examples=len(examples),
    )


class _Measured(NamedTuple):
    """Sums over a batch, NaN where the model does not define them, and its codes."""

    squared: float
    nats: float
    grids: tuple[Tensor, ...]


def _measured(model: Coder, batch: Tensor, examples: ExampleSet, positions: Tensor) -> _Measured:
    x = batch.to(_device(model))
    grids = model.encode_grids(x)
    squared = nats = math.nan
    if isinstance(model, AutoEncoder):
        parameters = model.distribution(grids)
        kept = model.likelihood.mean(parameters).clamp(0, 1)
        error = (cropped(kept, examples) - cropped(x, examples)).double()
        squared = float(error.square().sum())
        if isinstance(model.likelihood, Discrete):
            nats = float(model.likelihood.nll(parameters, x).double().sum()) * x[0].numel()
    elif isinstance(model, WaveNetVQVAE):
        bits = model.bits_per_dim(x, speakers(model, examples.labels[positions]))
        nats = float(bits.reconstruction.double().sum()) * x[0].numel() * math.log(2)
    return _Measured(squared, nats, tuple(grid.cpu() for grid in grids))


def speakers(model: WaveNetVQVAE, labels: Tensor | None) -> Tensor | None:
    """The labels that a decoder is told, on its device; ``None`` for one that is not told."""
    if model.config.num_speakers is None or labels is None:
        return None
    return labels.to(_device(model))


def variance(examples: ExampleSet) -> float:
    """Variance of all values of a split around their one mean; what NMSE is relative to."""
    total = squared = 0.0
    for _, batch in batches(examples):
        x = cropped(batch, examples).double()
        total, squared = total + float(x.sum()), squared + float(x.square().sum())
    values = len(examples) * examples.channels * math.prod(examples.size)
    return squared / values - (total / values) ** 2


def batches(examples: ExampleSet) -> Iterator[tuple[Tensor, Tensor]]:
    """All examples in order: positions ``[B]`` and data ``[B, C, *size]``, padding included."""
    for positions in torch.arange(len(examples)).split(_at_a_time(padded_size(examples))):
        yield positions, examples.batch(positions)


def padded_size(examples: ExampleSet) -> tuple[int, ...]:
    """The size of an example with its padding."""
    padding = examples.padding or (0,) * len(examples.size)
    return tuple(size + more for size, more in zip(examples.size, padding, strict=True))


def encode_examples(model: Coder, examples: ExampleSet) -> tuple[Tensor, ...]:
    """Codes int64 ``[N, *grid]`` on the CPU of all examples of a set; a grid for each level."""
    return joined([encode(model, batch) for _, batch in batches(examples)])


@torch.no_grad()
def encode(model: Coder, x: Tensor) -> tuple[Tensor, ...]:
    """Codes int64 ``[B, *grid]`` on the CPU of data ``[B, C, *size]``, in chunks."""
    parts = []
    for part in x.split(_at_a_time(x.shape[2:])):
        grids = model.encode_grids(part.to(_device(model)))
        parts.append(tuple(grid.cpu() for grid in grids))
    return joined(parts)


@torch.no_grad()
def decode(
    model: Coder, grids: tuple[Tensor, ...], labels: Tensor | None = None, *, seed: int = 0
) -> Tensor:
    """Data float32 ``[B, C, *size]`` in [0, 1] on the CPU of grids of codes, in chunks.

    Args:
        model: in eval mode.
        grids: the top level first.
        labels: int64 ``[B]``, for a decoder that is told the speaker.
        seed: of a decoder that draws its samples.
    """
    axes = model.config.spatial_dims
    stride = model.level_strides[0]
    size = [n * s for n, s in zip(grids[0].shape[1 : 1 + axes], stride, strict=True)]
    count, generator = _at_a_time(size), torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, len(grids[0]), count):
        rows = slice(start, start + count)
        chunk = tuple(grid[rows].to(_device(model)) for grid in grids)
        if isinstance(model, WaveNetVQVAE):
            told = speakers(model, None if labels is None else labels[rows])
            data = model.decode(chunk[0], told, generator=generator)
        else:
            assert isinstance(model, AutoEncoder)
            data = model.decode_grids(chunk)
        parts.append(data.cpu())
    return torch.cat(parts).clamp(0, 1)


def joined(parts: list[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Batches of grids one after another: a grid for each level."""
    return tuple(torch.cat(level) for level in zip(*parts, strict=True))


def cropped(batch: Tensor, examples: ExampleSet) -> Tensor:
    """``batch [B, C, ...]`` without the padding that ``examples`` adds."""
    return crop(batch, examples.size)


def crop(batch: Tensor, size: tuple[int, ...]) -> Tensor:
    """The first ``size`` samples along the last axes of ``batch``."""
    for axis, length in enumerate(size, start=batch.ndim - len(size)):
        batch = batch.narrow(axis, 0, length)
    return batch


def _at_a_time(size: tuple[int, ...] | list[int] | torch.Size) -> int:
    return max(1, min(_EXAMPLES, _VALUES // math.prod(size)))


def _device(model: Coder) -> torch.device:
    return next(model.parameters()).device
