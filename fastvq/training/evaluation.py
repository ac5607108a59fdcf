# SPDX-License-Identifier: Apache-2.0
"""The figures of a run on one split, of the VQ-VAE and, where there is one, of its prior."""

from __future__ import annotations

from typing import Any

from fastvq.data import Splits
from fastvq.models import VQVAE
from fastvq.training import metrics
from fastvq.training.codes import check_fingerprint
from fastvq.training.prior import TrainedPrior, evaluate_prior


def evaluate(
    model: VQVAE, splits: Splits, split: str = "test", *, trained: TrainedPrior | None = None
) -> dict[str, Any]:
    """Measures a model, and a prior over its codes, on one split.

    Args:
        model: in eval mode.
        splits: padded to multiples of the model's stride.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        trained: the prior.

    Returns:
        The fields of `Reconstruction`, those of `PriorScore` where there is a prior, and the split.

    Raises:
        ValueError: the split is empty, or the prior is of another model.
    """
    images = splits.part(split)
    found: dict[str, Any] = {"split": split}
    found |= metrics.evaluate_reconstruction(model, images)._asdict()
    if trained is not None:
        check_fingerprint("the codes of the prior", trained.fingerprint, model)
        if trained.classes and images.classes != trained.classes:
            raise ValueError(
                f"the images must have the classes of the prior, {', '.join(trained.classes)}, "
                f"got {', '.join(images.classes) or 'none'}"
            )
        codes = metrics.encode_images(model, images)
        found |= evaluate_prior(trained.prior, codes, images.labels)._asdict()
    return found
