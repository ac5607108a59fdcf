# SPDX-License-Identifier: Apache-2.0
"""What the loop does with a batch: in parts, in bfloat16, compiled, shared by processes."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastvq import training
from fastvq.__main__ import main
from fastvq.data import DataConfig
from fastvq.models import VQVAE
from fastvq.training import checkpoints, engine, read_metrics
from fastvq.training.processes import Processes, launched
from fastvq.training.settings import TrainingConfig, learning_rate, seed_of

from .conftest import MODEL, TRAINING, silent
from .two_processes import fitted

GRADIENT = dataclasses.replace(MODEL, learning="gradient")


def trained(tmp_path, name, model=GRADIENT, **options):
    settings = dataclasses.replace(TRAINING, learning_rate=2e-3, **options)
    return training.train_model(DataConfig(), model, settings, tmp_path / name, report=silent)


def loss_curve(run):
    return [line["loss"] for line in read_metrics(run) if line["split"] == "train"]


class Sum(nn.Module):
    """A task of its own: the loss is the mean of a linear function of the examples."""

    score = "score"
    config = None
    examples = 5

    def __init__(self):
        super().__init__()
        self.module = nn.Linear(3, 1)

    def batch(self, positions, generator):
        return (torch.randn(len(positions), 3, generator=generator),)

    def losses(self, x):
        return {"loss": self.module(x).square().mean()}


def gradient(accumulate):
    torch.manual_seed(0)
    task = Sum()
    config = TrainingConfig(accumulate=accumulate, device="cpu")
    stepper = engine._Stepper(task, engine._parts(task, config), config, Processes())
    losses = stepper.step(0, task.batch(torch.arange(5), torch.Generator().manual_seed(1)))
    return losses["loss"], task.module.weight.grad


@pytest.mark.parametrize("accumulate", [2, 3, 5, 9])
def test_parts_of_a_batch_add_up_to_the_batch(accumulate):
    """Also where the last part is smaller (5 examples in 2 parts)."""
    loss, whole = gradient(1)
    part_loss, parts = gradient(accumulate)
    torch.testing.assert_close(part_loss, loss)
    torch.testing.assert_close(parts, whole)


def test_schedules():
    def rates(schedule):
        config = TrainingConfig(steps=10, warmup_steps=0, learning_rate=1.0, schedule=schedule)
        return [learning_rate(config, step) for step in (0, 5)]

    assert rates("constant") == [1, 1]
    assert rates("linear") == [1, 0.5]
    assert rates("cosine") == pytest.approx([1, 0.5])
    with pytest.raises(ValueError, match=r"schedule must be one of .* got 'cosin'"):
        TrainingConfig(schedule="cosin")


def test_seeds_differ_by_purpose():
    seeds = {seed_of(seed, step, rank) for seed in range(3) for step in range(9) for rank in (0, 1)}
    assert len(seeds) == 54
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bfloat16_trains_float32_weights_and_differs_from_float32(tmp_path):
    trained(tmp_path, "whole")
    model = trained(tmp_path, "half", precision="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    whole, half = loss_curve(tmp_path / "whole"), loss_curve(tmp_path / "half")
    assert whole != half
    # bfloat16 has 8 bits: the losses agree to a few of its roundings and fall alike
    assert half == pytest.approx(whole, rel=0.05)
    assert half[-1] < 0.8 * half[0]


@pytest.mark.slow
def test_compiled_training_is_the_same_training(tmp_path):
    # the size of a graph, which is what compiling takes its time for, shows nothing more
    model = dataclasses.replace(GRADIENT, hidden_channels=8, residual_blocks=1)
    trained(tmp_path, "eager", model, log_every=1)
    trained(tmp_path, "compiled", model, log_every=1, compile=True)
    eager, compiled = loss_curve(tmp_path / "eager"), loss_curve(tmp_path / "compiled")
    # other kernels, other roundings, until the first near-tie sends a vector to another code
    assert compiled[:3] == pytest.approx(eager[:3], rel=1e-4)
    assert compiled == pytest.approx(eager, rel=0.05)


def test_the_average_of_a_vqvae_has_the_codebook_of_its_last_step(tmp_path):
    trained(tmp_path, "run", model=MODEL, averaging=0.9)
    newest = checkpoints.latest(tmp_path / "run")
    tensors = training.checkpoints._pretrained.load_tensors
    kept, own = tensors(newest / "model.safetensors"), tensors(newest / "state.safetensors")
    assert any(name.startswith("quantizer.") for name in kept)
    for name in (name for name in kept if name.startswith("quantizer.")):
        assert torch.equal(kept[name], own[f"trained.{name}"])
    weights = [name for name in kept if name.startswith("encoder")]
    assert not any(torch.equal(kept[name], own[f"trained.{name}"]) for name in weights)


def test_tensorboard_takes_the_same_metrics(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(tmp_path, "run", tensorboard=True)
    board = reading.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    for split in ("train", "validation"):
        lines = [line for line in read_metrics(tmp_path / "run") if line["split"] == split]
        name = "loss" if split == "train" else "mse"
        events = board.Scalars(f"{name}/{split}")
        assert [event.step for event in events] == [line["step"] for line in lines]
        assert [e.value for e in events] == pytest.approx([line[name] for line in lines])


def test_shares_are_the_batch(monkeypatch):
    shares = [Processes(rank, 3).share(torch.arange(6)) for rank in range(3)]
    assert torch.cat(shares).sort().values.tolist() == list(range(6))
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 4 processes, got 6"):
        Processes(0, 4).share(torch.arange(6))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched() == Processes(0, 1, 0)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert launched() == Processes(3, 4, 1)


def test_two_processes_train_as_one(tmp_path, monkeypatch):
    """The command of one process under ``torchrun``: the same losses up to rounding.

    They join, part and join again; what stops the first stops both, and only the first speaks.
    """
    settings = [
        *("--set", "model.hidden_channels=16", "--set", "model.codebook_size=16"),
        *("--set", "training.steps=12", "--set", "training.validate_every=6"),
        *("--set", "training.log_every=1", "--set", "training.batch_size=32"),
        *("--set", "training.warmup_steps=2"),
    ]
    monkeypatch.setattr(sys, "argv", ["fastvq", "train", "--out", str(tmp_path / "one"), *settings])
    with pytest.raises(SystemExit, match="0"):
        main()
    script = Path(__file__).with_name("two_processes.py")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    ended = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path), *settings],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [line["step"] for line in one] == [line["step"] for line in two]
    # k-means starts from the first process's share, so the codebooks are not the same at first
    for ours, theirs in zip(one, two, strict=True):
        name = "loss" if ours["split"] == "train" else "mse"
        assert theirs[name] == pytest.approx(ours[name], rel=0.15)
    assert VQVAE.from_pretrained(checkpoints.best(tmp_path / "two")).config.codebook_size == 16

    # without codebooks nothing but the order of the sums differs
    weights = [torch.load(tmp_path / f"weights-{rank}.pt") for rank in (0, 1)]
    alone = fitted(tmp_path / "alone", Processes(), silent)
    for name, weight in alone.items():
        assert torch.equal(weights[0][name], weights[1][name])
        torch.testing.assert_close(weights[0][name], weight)
    ours, theirs = read_metrics(tmp_path / "alone"), read_metrics(tmp_path / "regression")
    assert [line["split"] for line in ours] == [line["split"] for line in theirs]
    for mine, their in zip(ours, theirs, strict=True):
        name = "loss" if mine["split"] == "train" else "score"
        assert their[name] == pytest.approx(mine[name], rel=1e-5)

    first, second = ((tmp_path / f"lines-{rank}.txt").read_text().splitlines() for rank in (0, 1))
    assert second == ["ended with 0", "ended with 2"]
    assert [line for line in first if line.startswith("ended")] == second
    assert first[0].startswith("step 3/6: validation score")
    assert first[-1].startswith("best validation mse")
    assert ended.stderr.count("there is a run in this folder") == 2
    assert ended.stderr.count("step 6/12: validation") == 1
    assert "FutureWarning" not in ended.stderr


def test_what_cannot_be_shared_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="multiple of the 2 processes, got 33 examples"):
        trained(tmp_path, "odd", batch_size=33)
    # the data are 1257
    with pytest.raises(ValueError, match="multiple of the 2 processes, got 1257 examples"):
        trained(tmp_path, "odd", batch_size=4096)
    assert not (tmp_path / "odd").exists()


def test_an_absent_tensorboard_is_found_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ModuleNotFoundError, match="pip install tensorboard"):
        trained(tmp_path, "x", tensorboard=True)
    assert not (tmp_path / "x").exists()
