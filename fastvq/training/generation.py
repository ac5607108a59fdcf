# SPDX-License-Identifier: Apache-2.0
"""Data from codes: samples of priors, and files of codes decoded."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import torch
from torch import Tensor

from fastvq import _checks
from fastvq.data import ExampleSet
from fastvq.models import Coder, WaveNetVQVAE
from fastvq.priors import sample
from fastvq.training import metrics
from fastvq.training.codes import Codes, check_fingerprint, unflat
from fastvq.training.prior import TrainedPrior
from fastvq.training.progress import SamplingProgress


def sample_examples(
    model: Coder,
    priors: Sequence[TrainedPrior],
    count: int,
    *,
    classes: Sequence[str] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    graph: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Draws new data: codes from the priors, the top level first, values from the model's decoder.

    Args:
        model: the VQ-VAE whose codes the priors know.
        priors: one for each level of the model, the top first.
        count: examples, per class for class-conditional priors.
        classes: names of the classes to draw, by default all.
        temperature: see `fastvq.priors.probabilities`, as for the next two.
        top_k: how many codes may be drawn at each position.
        top_p: how much probability may be drawn at each position.
        seed: the same seed gives the same codes.
        graph: draw by a CUDA graph, see `fastvq.priors.sample_from`; the same codes.

    Returns:
        Data float32 ``[N, C, *size]`` in [0, 1], class after class, and labels int64 ``[N]``,
        ``None`` for priors without classes.

    Raises:
        ValueError: a prior is missing or of another model, the classes of two priors differ, a
            class is unknown, or a decoder that is told who speaks would not be; ``graph`` where a
            prior is not on a CUDA device or has no whole period to repeat.
        TypeError: ``graph`` where a prior's steps do not repeat.
    """
    _check_priors(model, priors)
    _checks.positive("count", count)
    labels = _labels(priors, count, classes)
    batch = count if labels is None else len(labels)
    generator = torch.Generator().manual_seed(seed)
    codes: list[Tensor] = []
    with closing(SamplingProgress(sum(trained.positions for trained in priors))) as progress:
        for trained in priors:
            where = next(trained.prior.parameters()).device
            drawn = sample(
                trained.prior,
                trained.shape,
                labels.to(where) if labels is not None and trained.classes else None,
                context=tuple(grid.to(where) for grid in codes) or None,
                batch=batch,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                generator=generator,
                graph=graph,
                progress=progress.step,
            )
            codes.append(drawn)
    grids = tuple(unflat(each.cpu(), model.config.codebooks) for each in codes)
    return metrics.crop(metrics.decode(model, grids, labels, seed=seed), priors[0].size), labels


def decode_codes(model: Coder, codes: Codes) -> Tensor:
    """The data ``[N, C, *size]`` in [0, 1] that a file of codes stands for, padding cut off.

    Raises:
        ValueError: the codes are another model's.
    """
    codes.check_made_by(model)
    return metrics.crop(metrics.decode(model, codes.grids, codes.labels), codes.size)


def reconstruct_examples(model: Coder, examples: ExampleSet, count: int) -> tuple[Tensor, Tensor]:
    """The first ``count`` examples and what the codes keep of them, ``[N, C, *size]`` each."""
    positions = torch.arange(min(count, len(examples)))
    batch = examples.batch(positions)
    kept = metrics.decode(model, metrics.encode(model, batch), examples.labels[positions])
    return metrics.cropped(batch, examples), metrics.cropped(kept, examples)


@torch.no_grad()
def codebook_images(model: Coder) -> Tensor:
    """Each code of a model of images with one level and codebook as an image of nothing else.

    The code fills a grid of 3x3, of which the centre cell is shown: the decoder sees neighbours.

    Returns:
        ``[K, C, H, W]`` in [0, 1].
    """
    codes = torch.arange(model.level_codebook_sizes[0])[:, None, None].expand(-1, 3, 3)
    height, width = model.level_strides[0]
    return metrics.decode(model, (codes,))[..., height : 2 * height, width : 2 * width]


def _check_priors(model: Coder, priors: Sequence[TrainedPrior]) -> None:
    levels = len(model.level_strides)
    if [trained.level for trained in priors] != list(range(levels)):
        raise ValueError(
            f"priors must be one for each of the {levels} levels, the top first, got those of "
            f"{[trained.level for trained in priors]}"
        )
    for trained in priors:
        check_fingerprint("the codes of the prior", trained.fingerprint, model)
    known = {trained.classes for trained in priors if trained.classes}
    if len(known) > 1:
        raise ValueError(f"priors must have the same classes, got {sorted(known)}")
    if isinstance(model, WaveNetVQVAE):
        wanted, speakers = model.config.num_speakers, sum(map(len, known))
        if wanted not in (None, speakers):
            raise ValueError(
                f"priors must have the {wanted} speakers of the model as classes, got {speakers}"
            )


def _labels(
    priors: Sequence[TrainedPrior], count: int, classes: Sequence[str] | None
) -> Tensor | None:
    """``count`` labels of each class, ``None`` where no prior has classes."""
    known = next((trained.classes for trained in priors if trained.classes), ())
    if classes is not None and not known:
        raise ValueError(f"classes must be None for priors without classes, got {list(classes)}")
    for name in classes or ():
        _checks.one_of("class", name, known)
    if not known:
        return None
    chosen = [known.index(name) for name in classes or known]
    return torch.tensor(chosen).repeat_interleave(count)
