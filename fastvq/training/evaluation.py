# SPDX-License-Identifier: Apache-2.0
"""The figures of a run on one split, of the VQ-VAE and, where there are any, of its priors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastvq.data import ExampleSet, Splits
from fastvq.models import Coder
from fastvq.priors import per_position_bits
from fastvq.training import metrics
from fastvq.training.codes import check_fingerprint, flat
from fastvq.training.prior import TrainedPrior, prior_bits


def evaluate(
    model: Coder,
    splits: Splits,
    split: str = "test",
    *,
    priors: Sequence[TrainedPrior] = (),
) -> dict[str, Any]:
    """Measures a model, and priors over its codes, on one split.

    Args:
        model: in eval mode.
        splits: padded to multiples of the model's stride.
        split: ``"train"``, ``"validation"``, ``"test"`` or ``"all"``.
        priors: of some or all levels.

    Returns:
        A document for JSON:

        - ``mse``, ``psnr``, ``nmse`` (mse over the variance of the training split), null where a
          reconstruction is drawn sample by sample;
        - ``bits``, of one example: ``nominal`` (codes times log2 K), ``order0`` and
          ``per_position`` (entropies of the histograms of these very codes, of each codebook and
          of each position, which a prior must beat), and ``prior`` where every level has one;
        - ``bits_per_pixel``: the same over the pixels of an image or samples of a signal;
        - ``bits_per_dim`` for a discrete likelihood: ``reconstruction`` alone, and with the bits of
          the codes added ``nominal`` and, where every level has one, ``prior``: bounds from above
          on ``-log2 p(x)`` per value;
        - ``levels``, the top first: ``grid``, ``codebook_size``, ``perplexity``, ``codes_used``,
          ``largest_share`` and bits per code, ``order0``, ``per_position`` and, where there is one,
          ``prior``;
        - ``examples``, ``split``.

    Raises:
        ValueError: the split is empty, or a prior is of another model or has other classes.
    """
    examples = splits.part(split)
    for trained in priors:
        check_fingerprint("the codes of the prior", trained.fingerprint, model)
        _check_classes(trained, examples)
    found = metrics.evaluate_reconstruction(model, examples)
    grids = metrics.encode_examples(model, examples)
    codes = tuple(flat(grid, model.config.codebooks) for grid in grids)
    priced = {p.level: prior_bits(p.prior, p.level, codes, examples.labels) for p in priors}
    levels = [
        {
            "grid": list(grid.shape[1:]),
            "codebook_size": size,
            **use._asdict(),
            "bits_per_code": {
                "order0": metrics.order0_bits(grid, size, model.config.codebooks),
                "per_position": per_position_bits(flattened, size),
            }
            | ({"prior": priced[level]} if level in priced else {}),
        }
        for level, (grid, flattened, use, size) in enumerate(
            zip(grids, codes, found.use, found.codebook_sizes, strict=True)
        )
    ]
    bits = _of_example(levels, found, complete=len(priced) == len(levels))
    document = {
        "split": split,
        "examples": found.examples,
        "mse": found.mse,
        "psnr": found.psnr,
        "nmse": None if found.mse is None else found.mse / metrics.variance(splits.train),
        "bits": bits,
        "bits_per_pixel": {name: each / math.prod(examples.size) for name, each in bits.items()},
        "levels": levels,
    }
    if found.reconstruction_bits_per_dim is not None:
        values = examples.channels * math.prod(examples.size)
        reconstruction = found.reconstruction_bits_per_dim
        document["bits_per_dim"] = {"reconstruction": reconstruction} | {
            name: reconstruction + bits[name] / values
            for name in ("nominal", "prior")
            if name in bits
        }
    return document


def _of_example(
    levels: list[dict[str, Any]], found: metrics.Reconstruction, *, complete: bool
) -> dict[str, float]:
    """Bits of the codes of one example, under each way of pricing them."""
    names = ("order0", "per_position", *(("prior",) if complete else ()))
    priced = {
        name: sum(math.prod(each["grid"]) * each["bits_per_code"][name] for each in levels)
        for name in names
    }
    return {"nominal": found.bits_per_example, **priced}


def _check_classes(trained: TrainedPrior, examples: ExampleSet) -> None:
    if trained.classes and examples.classes != trained.classes:
        raise ValueError(
            f"the data must have the classes of the prior, {', '.join(trained.classes)}, "
            f"got {', '.join(examples.classes) or 'none'}"
        )
