# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math
from contextlib import closing

import pytest
import torch
from torch import nn

from fastvq import _pretrained
from fastvq.training import TrainingConfig, checkpoints, engine, read_metrics
from fastvq.training.batches import Batches, Order
from fastvq.training.processes import Processes
from fastvq.training.settings import learning_rate, resolve_device

from .conftest import silent


@dataclasses.dataclass(frozen=True)
class Nothing:
    pass


class Line:
    """A task whose validation scores are given, and whose loss pulls one number down."""

    score = "score"
    config = Nothing()
    examples = 10

    def __init__(self, scores=()):
        self.module = nn.Linear(1, 1)
        self.scores = iter(scores)
        self.seen = []

    def batch(self, positions, generator):
        return (positions,)

    def losses(self, positions):
        self.seen.append(positions.tolist())
        return {"loss": self.module(torch.ones(1, 1)).square().sum()}

    def validate(self, module):
        return {"score": next(self.scores, 1.0)}


def config(**options):
    defaults = {"steps": 10, "batch_size": 4, "validate_every": 1, "device": "cpu"}
    return TrainingConfig(**(defaults | options))


def test_an_epoch_shows_every_example_at_most_once_and_epochs_differ():
    order = Order(10, 4, seed=3)
    epochs = [order.positions(2 * e).tolist() + order.positions(2 * e + 1).tolist() for e in (0, 1)]
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert epochs[0] != epochs[1]
    # the order is a function of the step: nobody has to have asked for the steps before
    assert Order(10, 4, seed=3).positions(3).tolist() == epochs[1][4:]
    assert Order(10, 4, seed=4).positions(3).tolist() != epochs[1][4:]


def test_what_is_drawn_in_reading_is_a_function_of_step_and_process():
    def drawn(*steps, rank=0):
        """Also where the steps before have not been asked for."""
        read, order = lambda at, generator: (torch.rand(3, generator=generator),), Order(8, 4, 0)
        with closing(Batches(read, order, Processes(rank, 2), config())) as batches:
            return [batches.take(step)[0].tolist() for step in steps]

    first, second = drawn(3, 4)
    assert first != second
    assert drawn(4) == [second]
    assert drawn(4, rank=1) != [second]


def test_a_batch_larger_than_the_data_is_the_data():
    assert sorted(Order(3, 8, seed=0).positions(5).tolist()) == [0, 1, 2]


def test_the_learning_rate_rises_and_falls():
    rates = [
        learning_rate(config(steps=100, warmup_steps=9, learning_rate=2.0), step)
        for step in range(100)
    ]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == rates[9] == pytest.approx(2.0 * 0.5 * (1 + math.cos(0.09 * math.pi)))
    assert rates[50] == pytest.approx(1.0)
    assert 0 < rates[99] < 0.001


def test_a_stale_run_stops_and_the_best_stays(tmp_path):
    task = Line(scores=[5, 3, 4, 3, 6, 1])
    state = engine.fit(task, config(patience=3, keep=1), tmp_path, report=silent)
    assert (state.step, state.best_step, state.best_score) == (5, 2, 3)
    assert checkpoints.best(tmp_path).name == "step-00000002"
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["step-00000002", "step-00000005"]


def test_metrics_are_means_since_the_last_line(tmp_path):
    task = Line()
    with torch.no_grad():
        task.module.weight.fill_(1)
        task.module.bias.fill_(0)
    seen = []
    losses = task.losses
    task.losses = lambda at: seen.append((out := losses(at))["loss"].item()) or out
    engine.fit(task, config(log_every=3, validate_every=7), tmp_path, report=silent)
    lines = [line for line in read_metrics(tmp_path) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [3, 6, 7, 9, 10]
    assert lines[1]["loss"] == pytest.approx(sum(seen[3:6]) / 3)
    assert lines[4]["loss"] == pytest.approx(seen[9])


def test_the_average_is_kept_and_the_weights_are_resumed(tmp_path):
    task = Line()
    history = []
    losses = task.losses
    task.losses = lambda at: history.append(task.module.weight.item()) or losses(at)
    engine.fit(task, config(learning_rate=0.1, averaging=0.9), tmp_path, report=silent)
    history.append(task.module.weight.item())
    mean = history[0]
    for step, weight in enumerate(history[1:]):
        decay = min(0.9, (step + 1) / (step + 10))
        mean = decay * mean + (1 - decay) * weight
    saved = _pretrained.load_tensors(checkpoints.latest(tmp_path) / "model.safetensors")
    # ten float32 roundings of a number below one
    assert saved["weight"].item() == pytest.approx(mean, abs=1e-6)
    state = _pretrained.load_tensors(checkpoints.latest(tmp_path) / "state.safetensors")
    assert torch.equal(state["trained.weight"], task.module.weight.detach())


def test_decay_spares_biases_and_clipping_bounds_the_step():
    task = Line()
    parts = engine._parts(task, config(weight_decay=0.5))
    assert [(g["weight_decay"], [p.shape for p in g["params"]]) for g in
            parts.optimizer.param_groups] == [
        (0.5, [torch.Size([1, 1])]),
        (0.0, [torch.Size([1])]),
    ]  # fmt: skip
    with torch.no_grad():
        task.module.weight.fill_(1e4)
    stepper = engine._Stepper(task, parts, config(clip_norm=0.25), Processes())
    stepper.step(0, (torch.zeros(4),))
    norm = torch.cat([p.grad.flatten() for p in task.module.parameters()]).norm()
    assert norm.item() == pytest.approx(0.25, rel=1e-4)


def test_dropout_is_of_training_alone(tmp_path):
    """Of the average too, which is never trained."""
    task, modes = Line(), []
    losses = task.losses
    task.losses = lambda at: modes.append(("train", task.module.training)) or losses(at)
    task.validate = lambda module: modes.append(("validate", module.training)) or {"score": 1.0}
    for averaging in (0.0, 0.5):
        engine.fit(task, config(steps=2, averaging=averaging), tmp_path / str(averaging),
                   report=silent)  # fmt: skip
    assert modes == [("train", True), ("validate", False)] * 4


def test_a_loss_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path):
    task = Line()
    losses = task.losses
    task.losses = lambda at: {"loss": losses(at)["loss"] * (math.nan if len(task.seen) > 4 else 1)}
    with pytest.raises(FloatingPointError, match="the loss is nan at step 5"):
        engine.fit(task, config(), tmp_path, report=silent)
    assert checkpoints.latest(tmp_path).name == "step-00000004"
    for tensor in _pretrained.load_tensors(
        checkpoints.latest(tmp_path) / "model.safetensors"
    ).values():
        assert torch.isfinite(tensor).all()


def test_a_score_that_is_not_finite_stops_the_run_and_spares_the_checkpoint(tmp_path):
    """The losses were finite, the last step was not."""
    task = Line(scores=[2.0, math.nan])
    with pytest.raises(FloatingPointError, match="the validation score is nan at step 2"):
        engine.fit(task, config(), tmp_path, report=silent)
    assert checkpoints.latest(tmp_path).name == "step-00000001"
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"batch_size": 2.0}, TypeError, "batch_size must be an int, got float"),
        ({"learning_rate": 0.0}, ValueError, "learning_rate must be above 0, got 0"),
        ({"weight_decay": -0.1}, ValueError, "weight_decay must be at least 0, got -0.1"),
        ({"seed": 2**32}, ValueError, "seed must be below 2\\*\\*32, got 4294967296"),
        ({"patience": -1}, ValueError, "patience must be at least 0, got -1"),
    ],
)
def test_refused_settings(options, error, message):
    with pytest.raises(error, match=message):
        TrainingConfig(**options)


def test_refused_devices():
    with pytest.raises(ValueError, match="device 'gpu' cannot be used here"):
        resolve_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device 'cuda' cannot be used here"):
            resolve_device("cuda")
        assert resolve_device("auto") == torch.device("cpu")
