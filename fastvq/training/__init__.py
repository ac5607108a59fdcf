# SPDX-License-Identifier: Apache-2.0
"""Training, measuring and sampling: what the command line does, as functions."""

from fastvq.training.codes import Codes, encode_splits
from fastvq.training.demo import run_demo
from fastvq.training.evaluation import evaluate
from fastvq.training.experiments import EXPERIMENTS, run_experiment
from fastvq.training.generation import decode_codes, reconstruct_examples, sample_examples
from fastvq.training.jitter import Jitter, jittered
from fastvq.training.kinds import MODELS
from fastvq.training.metrics import Reconstruction, evaluate_reconstruction
from fastvq.training.models import ModelTraining, resume_model, train_model
from fastvq.training.prior import (
    PriorTraining,
    TrainedPrior,
    load_prior,
    prior_bits,
    prior_config_for,
    resume_prior,
    train_prior,
)
from fastvq.training.records import read_metrics
from fastvq.training.runs import load_data, load_model
from fastvq.training.settings import TrainingConfig, resolve_device

__all__ = [
    "EXPERIMENTS",
    "MODELS",
    "Codes",
    "Jitter",
    "ModelTraining",
    "PriorTraining",
    "Reconstruction",
    "TrainedPrior",
    "TrainingConfig",
    "decode_codes",
    "encode_splits",
    "evaluate",
    "evaluate_reconstruction",
    "jittered",
    "load_data",
    "load_model",
    "load_prior",
    "prior_bits",
    "prior_config_for",
    "read_metrics",
    "reconstruct_examples",
    "resolve_device",
    "resume_model",
    "resume_prior",
    "run_demo",
    "run_experiment",
    "sample_examples",
    "train_model",
    "train_prior",
]
