# SPDX-License-Identifier: Apache-2.0
"""The papers' experiments as sweeps: one setting varied, several seeds, a table and a plot."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastvq import _checks, _files
from fastvq import data as datasets
from fastvq.data import DataConfig, ExampleSet
from fastvq.training import pictures, runs
from fastvq.training.evaluation import evaluate
from fastvq.training.kinds import ModelConfig
from fastvq.training.models import ModelTraining, train_model
from fastvq.training.progress import Report

RESULT_NAME = "result.json"
TABLE_NAME = "table.md"
PLOT_NAME = "plot.png"
REPORT_NAME = "experiment.json"
# what variants may be judged by, in words
_SCORES = {"mse": "MSE", "bits_per_dim": "bits per dim"}


@dataclass(frozen=True)
class Experiment:
    """A sweep over variants of a model.

    Attributes:
        title: what is varied.
        claim: what a source says of it, with the place.
        variants: name of a variant -> the fields of the model's config that it sets.
    """

    title: str
    claim: str
    variants: Mapping[str, Mapping[str, Any]]


def _one(field: str, values: Sequence[Any]) -> dict[str, dict[str, Any]]:
    return {str(value): {field: value} for value in values}


EXPERIMENTS = {
    "dimension": Experiment(
        "dimension D of the codes",
        "The dimension matters little beyond a small one, the number of codes sets the capacity "
        "(comments of the authors' code, sonnet's vqvae_example.ipynb).",
        _one("codebook_dim", (1, 2, 4, 8, 16, 32, 64)),
    ),
    "codebook-size": Experiment(
        "number of codes K",
        "The capacity is that of the codes: log2 K bits each (1711.00937, section 3.2: under a "
        "uniform prior the KL term is the constant log K).",
        _one("codebook_size", (4, 16, 64, 256, 1024)),
    ),
    "beta": Experiment(
        "commitment weight beta",
        "The results did not vary for beta from 0.1 to 2.0; it depends on the scale of the "
        "reconstruction loss (1711.00937, section 3.2).",
        _one("commitment_weight", (0.02, 0.1, 0.25, 0.5, 1.0, 2.0)),
    ),
    "architecture": Experiment(
        "depth, width, kernels and attention",
        "Two residual blocks of 3x3 and 1x1 convolutions, no attention in the autoencoder "
        "(1711.00937, section 4.1); the papers do not ablate them.",
        {
            "as given": {},
            "no residual blocks": {"residual_blocks": 0},
            "4 residual blocks": {"residual_blocks": 4},
            "half as wide": {"hidden_channels": 0.5},
            "twice as wide": {"hidden_channels": 2.0},
            "5-wide convolutions": {"kernel_size": 5},
            "attention": {"attention_heads": 4},
        },
    ),
    "learning": Experiment(
        "how the codebook learns",
        "Moving averages train faster than the codebook loss, whatever the optimizer "
        "(1711.00937, appendix A.1, and the comments of the authors' code).",
        {
            "gradient (equation 3)": {"learning": "gradient"},
            "averages, decay 0.9": {"learning": "ema", "decay": 0.9},
            "averages, decay 0.99": {"learning": "ema", "decay": 0.99},
            "averages, decay 0.999": {"learning": "ema", "decay": 0.999},
        },
    ),
}


def run_experiment(
    name: str,
    data: DataConfig,
    model: ModelConfig | Callable[[ExampleSet], ModelConfig],
    training: ModelTraining,
    out: str | os.PathLike[str],
    *,
    seeds: int = 3,
    report: Report = print,
) -> dict[str, Any]:
    """Trains every variant of an experiment with several seeds, and measures each on test data.

    Called again on the same folder it goes on where it was stopped, inside a training run too.

    Args:
        name: one of `EXPERIMENTS`.
        data: what is trained on.
        model: the model that the variants are variants of, or a function that gives it for the
            training split.
        training: how each is trained; ``seed`` is the first of the seeds.
        out: takes ``table.md``, ``plot.png``, ``experiment.json`` and a run for each variant and
            seed.
        seeds: runs of each variant.
        report: takes lines about progress.

    Returns:
        What ``experiment.json`` holds: ``title``, ``claim``, ``finding``, and for each variant the
        median, the least and the largest of each figure over the seeds.

    Raises:
        ValueError: an unknown experiment, a setting that no model takes, no test data, or runs in
            ``out`` that were started with other settings.
    """
    _checks.one_of("experiment", name, EXPERIMENTS)
    _checks.positive("seeds", seeds)
    experiment, folder = EXPERIMENTS[name], Path(out)
    splits = datasets.load(data, report=report)
    splits.part("test")
    if not isinstance(model, ModelConfig):
        model = model(splits.train)
    variants = {label: _varied(model, fields) for label, fields in experiment.variants.items()}
    each_seed = [replace(training, seed=training.seed + offset) for offset in range(seeds)]
    for label, variant in variants.items():
        for how in each_seed:
            settings = runs.model_settings(data, variant, how)
            runs.check(_folder(folder, label, how), settings, resume=True)
    rows = {}
    for label, variant in variants.items():
        found = []
        for how in each_seed:
            report(f"{experiment.title}: {label}, seed {how.seed}")
            found.append(_measured(data, variant, how, _folder(folder, label, how), report))
        rows[label] = {figure: _spread([each[figure] for each in found]) for figure in found[0]}
    figure = _score(rows)
    document = {
        "experiment": name,
        "title": experiment.title,
        "claim": experiment.claim,
        "finding": _finding(rows, seeds),
        "seeds": seeds,
        "variants": rows,
    }
    _files.write_json(folder / REPORT_NAME, document)
    with _files.replacing(folder / TABLE_NAME) as temporary:
        temporary.write_text(table(document), encoding="utf-8")
    pictures.spreads(
        experiment.title,
        {label: row[figure] for label, row in rows.items()},
        folder / PLOT_NAME,
        figure=f"test {_SCORES[figure]}",
    )
    return document


def table(document: Mapping[str, Any]) -> str:
    """The result of an experiment as Markdown: medians, with the range over the seeds."""
    rows = document["variants"]
    figures = list(next(iter(rows.values())))
    lines = [
        f"# {document['title']}",
        "",
        f"**Claim.** {document['claim']}",
        "",
        f"**Finding.** {document['finding']}",
        "",
        f"Test split, median of the seeds ({document['seeds']}), the range in parentheses.",
        "",
        f"| variant | {' | '.join(figures)} |",
        f"|{'---|' * (len(figures) + 1)}",
    ]
    for label, row in rows.items():
        cells = [_cell(row[figure]) for figure in figures]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _varied(model: ModelConfig, fields: Mapping[str, Any]) -> ModelConfig:
    """The model with the fields of a variant; a float for a whole number multiplies it."""
    values = {}
    for field, value in fields.items():
        own = getattr(model, field)
        scales = isinstance(value, float) and isinstance(own, int)
        values[field] = round(own * value) if scales else value
    return replace(model, **values)


def _measured(
    data: DataConfig,
    model: ModelConfig,
    training: ModelTraining,
    run: Path,
    report: Report,
) -> dict[str, float]:
    """The figures of one run, trained or finished first where that is still to be done."""
    if (run / RESULT_NAME).is_file():
        return _files.read_json(run / RESULT_NAME)
    resume = (run / runs.RUN_NAME).is_file()
    trained = train_model(data, model, training, run, resume=resume, report=report)
    found = evaluate(trained, runs.load_data(run, trained, report=report))
    # a decoder that draws sample by sample has no error
    figures = {name: found[name] for name in ("mse", "psnr") if found[name] is not None}
    for number, level in enumerate(found["levels"]):
        suffix = f"_{number}" if len(found["levels"]) > 1 else ""
        figures |= {f"{name}{suffix}": level[name] for name in ("perplexity", "codes_used")}
    figures["bits_per_pixel"] = found["bits_per_pixel"]["nominal"]
    if "bits_per_dim" in found:
        figures["bits_per_dim"] = found["bits_per_dim"]["nominal"]
    _files.write_json(run / RESULT_NAME, figures)
    return figures


def _folder(experiment: Path, label: str, training: ModelTraining) -> Path:
    """The run of a variant with a seed."""
    return experiment / label.replace(" ", "-") / f"seed-{training.seed}"


def _score(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The figure that the variants are judged by: the first that all models of this kind have."""
    return next(name for name in _SCORES if name in next(iter(rows.values())))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "largest": max(values)}


def _finding(rows: Mapping[str, Mapping[str, Mapping[str, float]]], seeds: int) -> str:
    """What the figures say, by arithmetic alone."""
    figure = _score(rows)
    medians = {label: row[figure]["median"] for label, row in rows.items()}
    best, worst = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    # the noise that a difference has to stand out from
    spreads = [row[figure] for row in rows.values()]
    noise = max((each["largest"] - each["least"]) / each["median"] for each in spreads)
    known = f"seeds alone move it by up to {noise:.0%}" if seeds > 1 else "one seed tells no noise"
    return (
        f"Test {_SCORES[figure]} is least at {best} ({medians[best]:.5f}) and largest at {worst} "
        f"({medians[worst]:.5f}), {medians[worst] / medians[best] - 1:.0%} more; {known}."
    )


def _cell(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.4g} ({spread['least']:.4g} to {spread['largest']:.4g})"
