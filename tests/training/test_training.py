# SPDX-License-Identifier: Apache-2.0
"""What trains, and what is refused before anything is written."""

import dataclasses
import math

import pytest
import torch

from fastvq import data, training
from fastvq.data import DataConfig
from fastvq.models import VQVAE
from fastvq.priors import GatedPixelCNNConfig, WaveNetConfig, entropy_bits
from fastvq.training import metrics, models
from fastvq.training import prior as priors

from .conftest import MODEL, TRAINING, silent

PRIOR = GatedPixelCNNConfig(codebook_size=16, num_classes=10, channels=16, layers=2)


@pytest.fixture(scope="module")
def prior(codes, tmp_path_factory):
    settings = training.PriorTraining(steps=100, validate_every=20, averaging=0.9)
    folder = tmp_path_factory.mktemp("prior")
    return training.train_prior(codes, PRIOR, settings, folder, report=silent)


def test_a_vqvae_learns_and_says_so(tmp_path):
    lines = []
    settings = dataclasses.replace(TRAINING, steps=80)
    model = training.train_model(DataConfig(), MODEL, settings, tmp_path / "x", report=lines.append)
    found = training.evaluate_reconstruction(model, data.digits().test)
    # the mean image of the training digits has an error of 0.074; seen here: 0.050
    assert found.mse < 0.06
    assert found.use[0].codes_used > 8
    assert lines[-1].startswith("best validation mse")
    assert any(line.startswith("step 10/80: validation mse") for line in lines)
    assert not model.training


def test_a_prior_learns(prior, codes):
    rows = codes.part("test")
    grids = (codes.level(0)[rows],)
    bits = training.prior_bits(prior.prior, 0, grids, codes.labels[rows])
    assert bits < entropy_bits(grids[0], 16) < math.log2(16)


def test_a_prior_is_shown_the_training_codes_and_their_labels(prior, codes):
    scattered = dataclasses.replace(codes, split=codes.split.flip(0))
    task = priors._Task(prior.prior, scattered, 0)
    labels, grids = task.batch(torch.arange(8), torch.Generator())
    rows = scattered.part("train")[:8]
    assert torch.equal(grids, codes.grids[0][rows])
    assert torch.equal(labels, codes.labels[rows])
    with torch.no_grad():
        losses = task.losses(labels, grids)
        nats, of_others = (prior.prior.nll(grids, each).mean() for each in (labels, labels * 0))
    assert losses["loss"] == nats != of_others
    assert losses["bits_per_code"].item() == pytest.approx(nats.item() / math.log(2))


def test_samples_are_a_function_of_the_seed(model, prior):
    images, labels = training.sample_examples(model, [prior], 3, classes=["7", "2"], seed=4)
    assert images.shape == (6, 1, 8, 8)
    assert labels.tolist() == [7, 7, 7, 2, 2, 2]
    assert images.min() >= 0
    assert images.max() <= 1
    again, _ = training.sample_examples(model, [prior], 3, classes=["7", "2"], seed=4)
    other, _ = training.sample_examples(model, [prior], 3, classes=["7", "2"], seed=5)
    assert torch.equal(images, again)
    assert not torch.equal(images, other)


def test_a_prior_without_classes(model, codes, tmp_path):
    plain = dataclasses.replace(PRIOR, num_classes=None)
    settings = training.PriorTraining(steps=4, validate_every=2)
    trained = training.train_prior(codes, plain, settings, tmp_path / "p", report=silent)
    images, labels = training.sample_examples(model, [trained], 3)
    assert images.shape == (3, 1, 8, 8)
    assert labels is None
    with pytest.raises(ValueError, match=r"classes must be None .* got \['3'\]"):
        training.sample_examples(model, [trained], 3, classes=["3"])


def test_evaluation_of_both(run, model, prior):
    found = training.evaluate(model, training.load_data(run, model), priors=[prior])
    assert found["split"] == "test"
    assert found["examples"] == 360
    assert found["mse"] > 0
    (level,) = found["levels"]
    assert (level["grid"], level["codebook_size"]) == ([4, 4], 16)
    per_code = level["bits_per_code"]
    assert per_code["prior"] < per_code["order0"] < math.log2(16)
    assert per_code["per_position"] < per_code["order0"]
    assert found["bits"]["nominal"] == 64
    assert found["bits"]["prior"] == pytest.approx(16 * per_code["prior"])
    assert found["bits_per_pixel"]["prior"] == found["bits"]["prior"] / 64
    variance = data.digits().train.batch(torch.arange(1257)).double().var(correction=0).item()
    assert found["nmse"] == pytest.approx(found["mse"] / variance)
    assert "bits_per_dim" not in found
    relabelled = data.Splits(
        *(dataclasses.replace(part, classes=tuple("abcdefghij")) for part in data.digits())
    )
    with pytest.raises(ValueError, match=r"must have the classes of the prior, 0, 1, .* got a, b"):
        training.evaluate(model, relabelled, priors=[prior])


def test_half_of_a_batch_is_moved():
    digits = data.digits()
    task = models._Task(VQVAE(MODEL), digits, training.Jitter(shift=1.0), silent)
    images, labels = task.batch(torch.arange(8), torch.Generator().manual_seed(0))
    still = digits.train.batch(torch.arange(8))
    assert torch.equal(images[4:], still[4:])
    assert not (images[:4] == still[:4]).flatten(1).all(1).any()
    assert torch.equal(labels, digits.train.labels[:8])


@pytest.mark.parametrize(("share", "perplexity"), [(0.0, 0.0), (1.0, 15.99)])
def test_a_collapsed_codebook_is_announced(tmp_path, monkeypatch, share, perplexity):
    lines = []
    # one of the two can be met, the other cannot
    monkeypatch.setattr(models, "_COLLAPSED_SHARE", share)
    monkeypatch.setattr(models, "_COLLAPSED_PERPLEXITY", perplexity)
    settings = dataclasses.replace(TRAINING, steps=10)
    training.train_model(DataConfig(), MODEL, settings, tmp_path / "x", report=lines.append)
    assert lines[0].startswith("warning: the codebook has collapsed: perplexity")


def test_each_level_is_judged_by_its_own_size():
    lines = []
    task = models._Task(VQVAE(MODEL), data.digits(), training.Jitter(), lines.append)
    use = metrics.Use(perplexity=1.2, codes_used=2, largest_share=0.8)
    measured = metrics.Reconstruction(None, None, None, None, 0, 0, (use, use), (1, 32), 1)
    task._warn(measured)
    assert lines == [
        "warning: the codebook of level 1 has collapsed: perplexity 1.20 of 32, one code takes 80%"
    ]


def refused(error, message, tmp_path, function, *arguments):
    with pytest.raises(error, match=message):
        function(*arguments, tmp_path / "x", report=silent)
    assert not (tmp_path / "x").exists()


def test_refused_before_anything_is_written(tmp_path, codes):
    train, prior = training.train_model, training.train_prior
    wide = dataclasses.replace(MODEL, in_channels=3)
    refused(
        ValueError, "in_channels must be 1.*got 3", tmp_path, train, DataConfig(), wide, TRAINING
    )
    absent = DataConfig(source=str(tmp_path / "absent"))
    refused(FileNotFoundError, "no such folder", tmp_path, train, absent, MODEL, TRAINING)
    nowhere = dataclasses.replace(TRAINING, device="nowhere")
    refused(ValueError, "device 'nowhere'", tmp_path, train, DataConfig(), MODEL, nowhere)

    settings = training.PriorTraining(steps=2)
    larger = dataclasses.replace(PRIOR, codebook_size=32)
    refused(ValueError, "level 0 must be 16, .*got 32", tmp_path, prior, codes, larger, settings)
    fewer = dataclasses.replace(PRIOR, num_classes=9)
    refused(ValueError, "num_classes must be 10.*got 9", tmp_path, prior, codes, fewer, settings)
    line = WaveNetConfig(codebook_size=16, channels=8, layers=1)
    refused(ValueError, "got WaveNet, which is for 1", tmp_path, prior, codes, line, settings)
    only = dataclasses.replace(codes, split=torch.zeros_like(codes.split))
    refused(ValueError, "a validation split", tmp_path, prior, only, PRIOR, settings)


def test_a_run_is_not_overwritten(run):
    with pytest.raises(FileExistsError, match="there is a run in this folder"):
        training.train_model(DataConfig(), MODEL, TRAINING, run, report=silent)


def test_the_prior_of_another_model_is_refused(model, prior):
    other = type(model)(model.config)
    with pytest.raises(ValueError, match="the codes of the prior must be of the model"):
        training.sample_examples(other, [prior], 1)
    with pytest.raises(ValueError, match="did you mean '3'"):
        training.sample_examples(model, [prior], 1, classes=["33"])
    with pytest.raises(ValueError, match=r"one for each of the 1 levels.* got those of \[\]"):
        training.sample_examples(model, [], 1)
