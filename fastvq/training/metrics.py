# SPDX-License-Identifier: Apache-2.0
"""What is measured, defined once: squared error, PSNR, use of the codebook, rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fastvq.data import ExampleSet
from fastvq.models import VQVAE
from fastvq.priors import entropy_bits

# images at a time in evaluation; bounds the memory, and fixes the order of summation
BATCH = 256


class Use(NamedTuple):
    """How the codes of a whole split use the codebook.

    Attributes:
        perplexity: exp of the entropy of the histogram of the codes; 1 to K.
        codes_used: codes that occur at all.
        largest_share: share of the most frequent code.
    """

    perplexity: float
    codes_used: int
    largest_share: float


class Reconstruction(NamedTuple):
    """What a VQ-VAE keeps of a split.

    Attributes:
        mse: mean squared error per value, pixels in [0, 1], reconstructions clamped to it, padding
            left out.
        psnr: ``-10 log10(mse)`` in dB; infinite at mse 0.
        bits_per_image: nominal, codes times log2 K.
        bits_per_pixel: that over height times width.
        perplexity: see `Use`.
        codes_used: see `Use`.
        largest_share: see `Use`.
        codebook_size: K.
        images: images measured.
    """

    mse: float
    psnr: float
    bits_per_image: float
    bits_per_pixel: float
    perplexity: float
    codes_used: int
    largest_share: float
    codebook_size: int
    images: int


def psnr(mse: float) -> float:
    """``-10 log10(mse)`` in dB for pixels in [0, 1]; infinite at 0."""
    return -10 * math.log10(mse) if mse > 0 else math.inf


def use(codes: Tensor, codebook_size: int) -> Use:
    """The use of the codebook by int64 ``codes`` of any shape, at least one."""
    counts = torch.bincount(codes.flatten().cpu(), minlength=codebook_size)
    perplexity = 2 ** entropy_bits(codes.cpu(), codebook_size)
    return Use(perplexity, int((counts > 0).sum()), float(counts.max() / counts.sum()))


@torch.no_grad()
def evaluate_reconstruction(model: VQVAE, images: ExampleSet) -> Reconstruction:
    """Measures a model, in eval mode, on a whole split.

    Args:
        model: on any device.
        images: padded to multiples of the model's stride.
    """
    squared, values = 0.0, 0
    grids = []
    for batch in batches(images):
        codes = encode(model, batch)
        error = (cropped(decode(model, codes), images) - cropped(batch, images)).double()
        squared, values = squared + float(error.square().sum()), values + error.numel()
        grids.append(codes)
    codes, size = torch.cat(grids), model.config.codebook_size
    bits = codes[0].numel() * math.log2(size)
    mse = squared / values
    return Reconstruction(
        mse,
        psnr(mse),
        bits,
        bits / math.prod(images.size),
        *use(codes, size),
        codebook_size=size,
        images=len(images),
    )


def batches(images: ExampleSet) -> Iterator[Tensor]:
    """All images in order, float32 ``[B, C, H, W]``."""
    for positions in torch.arange(len(images)).split(BATCH):
        yield images.batch(positions)


def encode_images(model: VQVAE, images: ExampleSet) -> Tensor:
    """Codes int64 ``[N, h, w]`` on the CPU of all images of a set."""
    return torch.cat([encode(model, batch) for batch in batches(images)])


@torch.no_grad()
def encode(model: VQVAE, images: Tensor) -> Tensor:
    """Codes int64 ``[B, h, w]`` on the CPU of ``images [B, C, H, W]``, in chunks."""
    device = next(model.parameters()).device
    return torch.cat([model.encode(part.to(device)).cpu() for part in images.split(BATCH)])


@torch.no_grad()
def decode(model: VQVAE, codes: Tensor) -> Tensor:
    """Images float32 ``[B, C, H, W]`` in [0, 1] on the CPU of codes ``[B, h, w]``, in chunks."""
    device = next(model.parameters()).device
    parts = [model.decode(part.to(device)).cpu() for part in codes.split(BATCH)]
    return torch.cat(parts).clamp(0, 1)


def cropped(batch: Tensor, images: ExampleSet) -> Tensor:
    """``batch`` without the padding that ``images`` adds."""
    for axis, length in enumerate(images.size, start=2):
        batch = batch.narrow(axis, 0, length)
    return batch
