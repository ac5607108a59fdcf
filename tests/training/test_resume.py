# SPDX-License-Identifier: Apache-2.0
"""A run that was stopped, however rudely, ends like one that was not."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from safetensors.torch import load_file

from fastvq import training
from fastvq.data import DataConfig
from fastvq.models import VQVAE, VQVAE2Config
from fastvq.priors import GatedPixelCNNConfig
from fastvq.training import checkpoints, engine, runs

from .conftest import MODEL, TRAINING, silent

PRIOR = GatedPixelCNNConfig(codebook_size=16, num_classes=10, channels=8, layers=2)
PRIOR_TRAINING = training.PriorTraining(
    steps=20, batch_size=32, log_every=4, validate_every=5, warmup_steps=2
)


class Stopped(Exception):
    pass


def stop_after(monkeypatch, step):
    """Makes the loop raise in the middle of the step after ``step``."""
    whole = engine.learning_rate

    def learning_rate(config, at):
        if at == step:
            raise Stopped
        return whole(config, at)

    monkeypatch.setattr(engine, "learning_rate", learning_rate)


def state_of(run):
    """All that a run leaves, but for the clock."""
    newest = checkpoints.latest(run)
    document = json.loads((newest / "state.json").read_text())
    del document["state"]["seconds"]
    tensors = load_file(newest / "model.safetensors") | load_file(newest / "state.safetensors")
    return tensors, document, (run / "metrics.jsonl").read_text()


def assert_same_run(first, second):
    (tensors, document, metrics), (others, other_document, other_metrics) = (
        state_of(first),
        state_of(second),
    )
    assert metrics == other_metrics
    assert document == other_document
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize("stop", [10, 13, 19])
@pytest.mark.parametrize("learning", ["ema", "gradient"])
def test_a_resumed_vqvae_is_the_uninterrupted_one(tmp_path, monkeypatch, learning, stop):
    model = dataclasses.replace(MODEL, learning=learning)
    shifted = dataclasses.replace(TRAINING, shift=1.0)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    training.train_model(DataConfig(), model, shifted, straight, report=silent)
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stopped):
            training.train_model(DataConfig(), model, shifted, broken, report=silent)
    torch.rand(7)  # whatever else the process draws in between must not matter
    training.resume_model(broken, report=silent)
    assert_same_run(straight, broken)


def test_with_all_options_a_resumed_run_is_the_uninterrupted_one(tmp_path, monkeypatch):
    how = dataclasses.replace(
        TRAINING, averaging=0.9, accumulate=3, precision="bfloat16", clip_norm=0.1, log_every=1
    )
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    training.train_model(DataConfig(), MODEL, how, straight, report=silent)
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        with pytest.raises(Stopped):
            training.train_model(DataConfig(), MODEL, how, broken, report=silent)
    training.resume_model(broken, report=silent)
    assert_same_run(straight, broken)


@pytest.mark.parametrize("averaging", [0.0, 0.9])
def test_a_resumed_prior_is_the_uninterrupted_one(tmp_path, monkeypatch, codes, averaging):
    settings = dataclasses.replace(PRIOR_TRAINING, averaging=averaging)
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    training.train_prior(codes, PRIOR, settings, straight, report=silent)
    with monkeypatch.context() as patch:
        stop_after(patch, 13)
        with pytest.raises(Stopped):
            training.train_prior(codes, PRIOR, settings, broken, report=silent)
    training.resume_prior(broken, report=silent)
    assert_same_run(straight, broken)


def test_a_run_stopped_before_its_first_checkpoint_starts_again(tmp_path, monkeypatch):
    training.train_model(DataConfig(), MODEL, TRAINING, tmp_path / "straight", report=silent)
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stopped):
            training.train_model(DataConfig(), MODEL, TRAINING, tmp_path / "x", report=silent)
    assert checkpoints.latest(tmp_path / "x") is None
    training.resume_model(tmp_path / "x", report=silent)
    assert_same_run(tmp_path / "straight", tmp_path / "x")


def test_a_finished_run_resumes_to_nothing(run):
    newest = checkpoints.latest(run)
    written = newest.stat().st_mtime_ns
    training.resume_model(run, report=silent)
    assert checkpoints.latest(run) == newest
    assert newest.stat().st_mtime_ns == written


def test_other_settings_are_no_resumption(run, codes, tmp_path):
    longer = dataclasses.replace(TRAINING, steps=90)
    with pytest.raises(ValueError, match=r"training.steps must be 80, as the run .* got 90"):
        training.train_model(DataConfig(), MODEL, longer, run, resume=True, report=silent)
    training.train_prior(codes, PRIOR, PRIOR_TRAINING, tmp_path, report=silent)
    (grid,) = codes.grids
    for change in (
        {"grids": (grid.flip(0),)},
        {"grids": (grid, grid), "codebook_sizes": (16, 16)},
        {"labels": codes.labels.flip(0)},
        {"split": codes.split.flip(0)},
        {"fingerprint": "0" * 64},
    ):
        others = dataclasses.replace(codes, **change)
        with pytest.raises(ValueError, match="codes must be those that the run was started with"):
            training.train_prior(
                others, PRIOR, PRIOR_TRAINING, tmp_path, resume=True, report=silent
            )


def test_a_run_older_than_a_setting_goes_on(tmp_path):
    config = VQVAE2Config()
    settings = runs.model_settings(DataConfig(), config, TRAINING)
    runs.create(tmp_path, settings, resume=False)
    path = tmp_path / runs.RUN_NAME
    document = json.loads(path.read_text())
    del document["model"]["codebook_sizes"]
    path.write_text(json.dumps(document))
    assert runs.model_config(tmp_path) == config
    runs.check(tmp_path, settings, resume=True)


def test_what_a_full_disk_leaves_can_be_gone_on_with(tmp_path, codes, monkeypatch):
    limits = pytest.importorskip("resource")
    soft, hard = limits.getrlimit(limits.RLIMIT_FSIZE)

    def on_a_full_disk(limit, error, function, *arguments):
        limits.setrlimit(limits.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(error):
                function(*arguments, report=silent)
        finally:
            limits.setrlimit(limits.RLIMIT_FSIZE, (soft, hard))

    # the codes are the first file of a prior's run, and are too large
    start = training.train_prior, codes, PRIOR, PRIOR_TRAINING, tmp_path / "prior"
    on_a_full_disk(500, OSError, *start)
    assert list((tmp_path / "prior").iterdir()) == []
    # room for the codes and not for a checkpoint
    codes.save(tmp_path / "codes.npz")
    room = (tmp_path / "codes.npz").stat().st_size
    on_a_full_disk(room, OSError, *start)
    assert list((tmp_path / "prior" / "checkpoints").iterdir()) == []
    training.resume_prior(tmp_path / "prior", report=silent)
    straight = training.train_prior(codes, PRIOR, PRIOR_TRAINING, tmp_path / "s", report=silent)
    assert straight.fingerprint == codes.fingerprint
    assert_same_run(tmp_path / "prior", tmp_path / "s")


def test_checkpoints_of_another_version_or_without_settings_are_refused(tmp_path):
    short = dataclasses.replace(TRAINING, steps=2)
    training.train_model(DataConfig(), MODEL, short, tmp_path / "x", report=silent)
    state = checkpoints.latest(tmp_path / "x") / "state.json"
    document = json.loads(state.read_text())
    for change, message in (
        ({"format_version": 2}, "format_version must be 1, got 2"),
        ({"state": document["state"] | {"phase": 1}}, "key of .*state.json must be one of"),
    ):
        state.write_text(json.dumps(document | change))
        with pytest.raises(ValueError, match=message):
            training.resume_model(tmp_path / "x", report=silent)
    state.write_text(json.dumps({"format_version": 1, "state": document["state"]}))
    with pytest.raises(ValueError, match="optimizer must be there"):
        training.resume_model(tmp_path / "x", report=silent)
    (tmp_path / "x" / "run.json").unlink()
    with pytest.raises(FileExistsError, match=r"checkpoints in this folder, but no run\.json"):
        training.train_model(DataConfig(), MODEL, short, tmp_path / "x", report=silent)


def test_training_leaves_the_random_numbers_of_the_caller_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    training.train_model(DataConfig(), MODEL, TRAINING, tmp_path / "x", report=silent)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGSTOP")
def test_killed_at_any_moment_a_run_leaves_a_checkpoint_that_loads(tmp_path):
    script = textwrap.dedent(
        f"""
        import torch
        from fastvq import training
        from fastvq.data import DataConfig
        from fastvq.models import VQVAEConfig
        torch.set_num_threads(1)
        model = VQVAEConfig(hidden_channels=8, residual_channels=4, codebook_size=16)
        settings = training.ModelTraining(steps=100000, batch_size=8, validate_every=1, keep=2)
        training.train_model(DataConfig(), model, settings, {str(tmp_path / "x")!r})
        """
    )
    # a fresh process checkpoints at every step, so that the kill lands in or near a write
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.DEVNULL,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    run = tmp_path / "x"
    survived = []
    try:
        deadline = time.monotonic() + 120
        while len(checkpoints.steps(run)) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        # stopped and looked at again and again: each stop is a moment at which a kill might come
        for pause in (0.0, 0.003, 0.011, 0.017, 0.023, 0.031, 0.047):
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            survived.append(checkpoints.latest(run).name)
            VQVAE.from_pretrained(checkpoints.best(run))
            load_file(checkpoints.latest(run) / "state.safetensors")
            process.send_signal(signal.SIGCONT)
            # as long as it takes where other programs want the processor too
            while checkpoints.latest(run).name == survived[-1] and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(pause)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert len(set(survived)) == 7
    VQVAE.from_pretrained(checkpoints.best(run))
    # as if the run had been started with an end that is near
    settings = json.loads((run / "run.json").read_text())
    end = int(checkpoints.latest(run).name.split("-")[1]) + 2
    settings["training"]["steps"] = end
    (run / "run.json").write_text(json.dumps(settings))
    training.resume_model(run, report=silent)
    assert not list((run / "checkpoints").glob(".unfinished-*"))
    steps = [line["step"] for line in training.read_metrics(run) if line["split"] == "validation"]
    assert steps == list(range(1, end + 1))
