# SPDX-License-Identifier: Apache-2.0
"""Images from codes: samples of a prior, and files of codes decoded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data import ExampleSet
from fastvq.models import VQVAE
from fastvq.priors import sample
from fastvq.training import metrics
from fastvq.training.codes import Codes, check_fingerprint
from fastvq.training.prior import TrainedPrior


def sample_images(
    model: VQVAE,
    trained: TrainedPrior,
    count: int,
    *,
    classes: Sequence[str] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """Draws images: codes from the prior, pixels from the model's decoder.

    Args:
        model: the VQ-VAE whose codes the prior knows.
        trained: the prior.
        count: images, per class for a class-conditional prior.
        classes: names of the classes to draw, by default all.
        temperature: see `fastvq.priors.probabilities`, as for the next two.
        top_k: how many codes may be drawn at each position.
        top_p: how much probability may be drawn at each position.
        seed: the same seed gives the same images.

    Returns:
        Images float32 ``[N, C, H, W]`` in [0, 1], class after class, and their labels int64
        ``[N]``, ``None`` for a prior without classes.

    Raises:
        ValueError: the prior is of another model, or a class is unknown.
    """
    check_fingerprint("the codes of the prior", trained.fingerprint, model)
    _checks.positive("count", count)
    if classes is not None and not trained.classes:
        raise ValueError(f"classes must be None for a prior without classes, got {list(classes)}")
    for name in classes or ():
        _checks.one_of("class", name, trained.classes)
    labels = None
    if trained.classes:
        chosen = [trained.classes.index(name) for name in classes or trained.classes]
        labels = torch.tensor(chosen).repeat_interleave(count)
    codes = sample(
        trained.prior,
        trained.grid,
        labels,
        batch=None if labels is not None else count,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=torch.Generator().manual_seed(seed),
    )
    height, width = trained.image_size
    return metrics.decode(model, codes.cpu())[..., :height, :width], labels


def decode_codes(model: VQVAE, codes: Codes) -> Tensor:
    """The images ``[N, C, H, W]`` in [0, 1] that a file of codes stands for, padding cut off.

    Raises:
        ValueError: the codes are another model's.
    """
    codes.check_made_by(model)
    height, width = codes.image_size
    return metrics.decode(model, codes.codes)[..., :height, :width]


def reconstruct_images(model: VQVAE, images: ExampleSet, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` images and what the model's codes keep of them, ``[N, C, H, W]`` each."""
    batch = images.batch(torch.arange(min(count, len(images))))
    kept = metrics.decode(model, metrics.encode(model, batch))
    return metrics.cropped(batch, images), metrics.cropped(kept, images)


@torch.no_grad()
def codebook_images(model: VQVAE) -> Tensor:
    """Each code decoded as an image of nothing else: ``[K, C, H, W]`` in [0, 1].

    The code fills a grid of 3x3, of which the centre cell is shown: the decoder sees neighbours.
    """
    codes = torch.arange(model.config.codebook_size)[:, None, None].expand(-1, 3, 3)
    stride = model.config.stride
    return metrics.decode(model, codes)[..., stride : 2 * stride, stride : 2 * stride]
