# SPDX-License-Identifier: Apache-2.0
"""What `test_processes.py` runs in two processes: ``torchrun two_processes.py OUT COMMAND...``."""

import os
import sys
from pathlib import Path

import torch
from torch import nn

from fastvq import training
from fastvq.__main__ import main
from fastvq.training import engine
from fastvq.training.processes import launched, together
from fastvq.training.settings import TrainingConfig

CONFIG = TrainingConfig(
    steps=6, batch_size=4, accumulate=2, validate_every=3, log_every=1, averaging=0.5, device="cpu"
)


class Regression:
    """A task whose every step is a function of the examples alone."""

    score = "score"
    config = CONFIG
    examples = 8

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Linear(3, 1)
        self.table = torch.randn(8, 4)

    def batch(self, positions, generator):
        return (self.table[positions],)

    def losses(self, rows):
        return {"loss": (self.module(rows[:, :3]) - rows[:, 3:]).square().mean()}

    def validate(self, module):
        return {"score": self.losses(self.table)["loss"].item()}


def fitted(out, processes, report):
    """The weights of a regression after training."""
    task = Regression()
    out.mkdir(parents=True, exist_ok=True)
    engine.fit(task, CONFIG, out, processes=processes, report=report)
    return task.module.state_dict()


if __name__ == "__main__":
    out, processes, lines = Path(sys.argv[1]), launched(), []
    with together(processes, torch.device("cpu")):
        weights = fitted(out / "regression", processes, lines.append)
    torch.save(weights, out / f"weights-{processes.rank}.pt")

    sys.argv = ["fastvq", "train", "--out", str(out / "two"), *sys.argv[2:]]
    # joined again after they have parted; the second time there is a run already
    for _ in range(2):
        try:
            main()
        except SystemExit as ended:
            lines.append(f"ended with {ended.code}")
    training.resume_model(out / "two", report=lines.append)
    Path(out / f"lines-{os.environ['RANK']}.txt").write_text("\n".join(lines))
