# SPDX-License-Identifier: Apache-2.0
"""Sweeps: every variant is a model, what is done is not done again, the table says what came."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from fastvq import training
from fastvq.data import DataConfig
from fastvq.models import VQVAE2Config, VQVAEConfig, WaveNetVQVAEConfig
from fastvq.training import experiments

from .conftest import silent

MODEL = VQVAEConfig(hidden_channels=16, residual_channels=4)
TRAINING = training.ModelTraining(steps=2, batch_size=16, validate_every=2, warmup_steps=1)


def quick(monkeypatch, **variants):
    sweep = experiments.Experiment("a setting", "a claim (its source).", variants)
    monkeypatch.setitem(training.EXPERIMENTS, "beta", sweep)


@pytest.mark.parametrize("name", sorted(training.EXPERIMENTS))
def test_every_variant_is_a_model_of_its_own(name):
    experiment = training.EXPERIMENTS[name]
    models = [experiments._varied(MODEL, fields) for fields in experiment.variants.values()]
    # one of them may be the model as it is given
    assert len(set(models)) == len(models) > 3
    assert sum(model == MODEL for model in models) <= 1


def test_a_whole_number_is_multiplied_by_a_factor():
    assert experiments._varied(MODEL, {"hidden_channels": 0.5}).hidden_channels == 8
    assert experiments._varied(MODEL, {"commitment_weight": 0.5}).commitment_weight == 0.5


def test_an_experiment_and_its_continuation(tmp_path, monkeypatch):
    quick(monkeypatch, small={"codebook_size": 4}, large={"codebook_size": 16})
    settings = (DataConfig(), MODEL, TRAINING, tmp_path)
    found = training.run_experiment("beta", *settings, seeds=2, report=silent)
    assert set(found["variants"]) == {"small", "large"}
    mse = found["variants"]["large"]["mse"]
    assert mse["least"] <= mse["median"] <= mse["largest"]
    assert found["variants"]["small"]["bits_per_pixel"]["median"] == 0.5
    table = (tmp_path / "table.md").read_text()
    assert "a claim (its source)." in table
    assert found["finding"] in table
    assert table.count("\n| ") == 3
    with Image.open(tmp_path / "plot.png") as picture:
        picture.load()

    # figures of other settings are not taken for those that were asked for
    longer = dataclasses.replace(TRAINING, steps=4)
    with pytest.raises(ValueError, match=r"training.steps must be 2, as the run in .* got 4"):
        training.run_experiment("beta", DataConfig(), MODEL, longer, tmp_path, report=silent)

    # one run is lost, one was stopped inside: only these are made again, and to the same figures
    (tmp_path / "large" / "seed-1" / "result.json").unlink()
    trained = []
    whole = experiments.train_model

    def counted(data, model, how, run, **options):
        trained.append((run.parent.name, run.name, options["resume"]))
        return whole(data, model, how, run, **options)

    monkeypatch.setattr(experiments, "train_model", counted)
    again = training.run_experiment("beta", *settings, seeds=2, report=silent)
    assert trained == [("large", "seed-1", True)]
    assert again == found


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'beta'"):
        training.run_experiment("bta", DataConfig(), MODEL, TRAINING, tmp_path / "x")
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        training.run_experiment("beta", DataConfig(), MODEL, TRAINING, tmp_path / "x", seeds=0)
    # what no model takes is found before anything is trained
    fsq = dataclasses.replace(MODEL, quantizer="fsq", fsq_levels=(8, 8))
    with pytest.raises(ValueError, match="commitment_weight must be None for quantizer 'fsq'"):
        training.run_experiment("beta", DataConfig(), fsq, TRAINING, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_without_an_error_the_bits_are_compared(tmp_path, monkeypatch):
    """Speech, whose decoder draws sample by sample; and one seed claims no noise."""
    quick(monkeypatch, small={"codebook_size": 4}, large={"codebook_size": 16})
    waves = np.random.default_rng(0).integers(0, 256, (12, 16), np.uint8)
    np.save(tmp_path / "waves.npy", waves)
    source = DataConfig(source=str(tmp_path / "waves.npy"), layout="NL")
    model = WaveNetVQVAEConfig(
        hidden_channels=4, strides=(2,), codebook_dim=2, wavenet_channels=4, wavenet_layers=1
    )
    found = training.run_experiment(
        "beta", source, model, TRAINING, tmp_path / "x", seeds=1, report=silent
    )
    assert found["finding"].startswith("Test bits per dim is least at ")
    assert found["finding"].endswith("one seed tells no noise.")
    assert (tmp_path / "x" / "plot.png").is_file()


def test_a_hierarchy_has_the_figures_of_every_level(tmp_path, monkeypatch):
    quick(monkeypatch, only={})
    model = VQVAE2Config(hidden_channels=8, residual_channels=4, strides=((2,), (2,)))
    found = training.run_experiment(
        "beta", DataConfig(), model, TRAINING, tmp_path, seeds=1, report=silent
    )
    assert {"perplexity_0", "perplexity_1", "codes_used_1"} <= found["variants"]["only"].keys()


def test_data_without_a_test_split_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "data" / "train").mkdir(parents=True)
    for index in range(2):
        Image.new("L", (8, 8)).save(tmp_path / "data" / "train" / f"{index}.png")
    source = DataConfig(source=str(tmp_path / "data"), channels=1)
    with pytest.raises(ValueError, match="the test split must hold at least one example"):
        training.run_experiment("beta", source, MODEL, TRAINING, tmp_path / "x", report=silent)
    assert not (tmp_path / "x").exists()
