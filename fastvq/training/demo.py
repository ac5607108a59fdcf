# SPDX-License-Identifier: Apache-2.0
"""The whole system on real data in minutes: a VQ-VAE and its prior on the digits."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastvq
from fastvq import _backends, _files
from fastvq import data as datasets
from fastvq.data import DataConfig, Splits
from fastvq.models import Coder, VQVAEConfig
from fastvq.priors import GatedPixelCNNConfig
from fastvq.training import generation, pictures
from fastvq.training.codes import encode_splits
from fastvq.training.evaluation import evaluate
from fastvq.training.models import ModelTraining, train_model
from fastvq.training.prior import PriorTraining, TrainedPrior, train_prior
from fastvq.training.progress import Report
from fastvq.training.records import read_metrics
from fastvq.training.runs import PRIOR_FOLDER
from fastvq.training.settings import resolve_device

MODEL = VQVAEConfig(hidden_channels=96)
MODEL_TRAINING = ModelTraining(steps=1500, rotate=8.0, zoom=0.1, shift=0.5)
# the training digits are encoded this many times more, moved: 1257 alone are soon known by heart
_COPIES = 16
PRIOR_TRAINING = PriorTraining(steps=800)
REPORT_NAME = "report.json"
# samples of each class: shown in the picture, and drawn to be judged by a classifier
_SHOWN, _JUDGED = 12, 40
# below 1 the unlikeliest codes, most of them slips of a small prior, are drawn less often
_TEMPERATURE = 0.8


def run_demo(
    out: str | os.PathLike[str],
    *,
    seed: int = 0,
    model_steps: int = MODEL_TRAINING.steps,
    prior_steps: int = PRIOR_TRAINING.steps,
    report: Report = print,
) -> dict[str, Any]:
    """Trains a VQ-VAE and a prior on scikit-learn's digits, and writes what they can do.

    Runs on one thread, so that the same seed gives the same figures on any number of cores.

    Args:
        out: takes ``reconstructions.png``, ``samples.png``, ``codebook.png``, ``curves.png``,
            ``report.json`` and the runs themselves (``prior/`` the second).
        seed: of both trainings and of the samples.
        model_steps: optimizer steps of the VQ-VAE.
        prior_steps: optimizer steps of the prior at most.
        report: takes lines about progress.

    Returns:
        What ``report.json`` holds.

    Raises:
        FileExistsError: there is a run in ``out`` already.
    """
    # a second thread takes a quarter off a step of so small a model on an idle machine, and makes
    # it four to twelve times slower where another program wants the core: the threads then wait
    # for one another at every operation
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(Path(out), seed, model_steps, prior_steps, report)
    finally:
        torch.set_num_threads(before)


def _run(
    run: Path, seed: int, model_steps: int, prior_steps: int, report: Report
) -> dict[str, Any]:
    started = time.monotonic()
    splits = datasets.load(DataConfig())
    report(f"VQ-VAE on {len(splits.train)} digits, {model_steps} steps")
    training = replace(MODEL_TRAINING, seed=seed, steps=model_steps)
    model = train_model(DataConfig(), MODEL, training, run, report=report)
    codes = encode_splits(model, splits, copies=_COPIES, jitter=training, seed=seed)
    report(f"prior on their codes, at most {prior_steps} steps")
    # with so many moved copies the prior needs less dropout than its defaults give
    prior_model = GatedPixelCNNConfig(
        codes.codebook_sizes[0], codes.num_classes, dropout=0.1, code_dropout=0.1
    )
    prior_training = replace(PRIOR_TRAINING, seed=seed, steps=prior_steps)
    trained = train_prior(codes, prior_model, prior_training, run / PRIOR_FOLDER, report=report)
    judged = _draw_pictures(run, model, trained, splits, seed)
    found = evaluate(model, splits, "test", priors=[trained])
    found["test_mse"] = found.pop("mse")
    found |= judged
    found |= {
        "sample_temperature": _TEMPERATURE,
        "seconds": round(time.monotonic() - started, 1),
        "backend": _backends.chosen("nearest", resolve_device(training.device).type),
        "versions": {"fastvq": fastvq.__version__, "torch": torch.__version__},
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    _files.write_json(run / REPORT_NAME, found)
    return found


def table(found: dict[str, Any]) -> str:
    """The report as a few lines for a person."""
    (level,), bits = found["levels"], found["bits"]
    rows = (
        ("test MSE, pixels in [0, 1]", f"{found['test_mse']:.5f}  ({found['psnr']:.1f} dB)"),
        ("bits per image", f"{bits['nominal']:.0f} nominal, {bits['prior']:.1f} under the prior"),
        ("codes used", f"{level['codes_used']} of {level['codebook_size']}, "
         f"perplexity {level['perplexity']:.1f}"),
        ("prior, bits per code", f"{level['bits_per_code']['prior']:.3f}, against "
         f"{level['bits_per_code']['per_position']:.3f} by position alone"),
        ("samples read as their class", f"{found['sample_accuracy']:.0%} at temperature "
         f"{found['sample_temperature']}, by a classifier that reads "
         f"{found['real_accuracy']:.0%} of real digits"),
        ("time", f"{found['seconds']:.0f} s on {found['threads']} threads, {found['backend']}"),
    )  # fmt: skip
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _draw_pictures(
    run: Path, model: Coder, trained: TrainedPrior, splits: Splits, seed: int
) -> dict[str, float]:
    """Writes the four pictures; returns how the samples fare with a classifier."""
    originals, kept = generation.reconstruct_examples(model, splits.test, 48)
    pictures.save_picture(pictures.reconstructions(originals, kept), run / "reconstructions.png")

    samples, labels = generation.sample_examples(
        model, [trained], _JUDGED, temperature=_TEMPERATURE, seed=seed
    )
    assert labels is not None
    shown = samples.unflatten(0, (-1, _JUDGED))[:, :_SHOWN].flatten(0, 1)
    grid = pictures.image_grid(shown, _SHOWN, row_names=trained.classes)
    pictures.save_picture(grid, run / "samples.png")

    codebook = generation.codebook_images(model)
    names = [str(i) for i in range(len(codebook))]
    side = max(1, round(len(codebook) ** 0.5))
    book = pictures.image_grid(codebook, side, row_names=names[::side])
    pictures.save_picture(book, run / "codebook.png")

    bits = "bits_per_code"
    panels = (
        pictures.Panel("VQ-VAE", read_metrics(run), "reconstruction_loss", "mse", "log"),
        pictures.Panel("prior", read_metrics(run / PRIOR_FOLDER), bits, bits, "linear"),
    )
    pictures.curves(panels, run / "curves.png")
    return _judge(samples, labels, splits)


def _judge(samples: Tensor, labels: Tensor, splits: Splits) -> dict[str, float]:
    """How often a classifier of real digits reads samples as the class that was asked for."""
    from sklearn.linear_model import LogisticRegression

    def pixels(images: Tensor) -> Any:
        return images.flatten(1).numpy()

    train, test = (part.batch(torch.arange(len(part))) for part in (splits.train, splits.test))
    classifier = LogisticRegression(max_iter=1000).fit(pixels(train), splits.train.labels.numpy())
    return {
        "sample_accuracy": float(classifier.score(pixels(samples), labels.numpy())),
        "real_accuracy": float(classifier.score(pixels(test), splits.test.labels.numpy())),
    }
