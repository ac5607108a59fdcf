# SPDX-License-Identifier: Apache-2.0
"""Training, measuring and sampling: what the command line does, as functions."""

from fastvq.training.codes import Codes, encode_splits
from fastvq.training.demo import run_demo
from fastvq.training.evaluation import evaluate
from fastvq.training.generation import decode_codes, reconstruct_images, sample_images
from fastvq.training.jitter import Jitter, jittered
from fastvq.training.metrics import Reconstruction, evaluate_reconstruction
from fastvq.training.prior import (
    PriorScore,
    PriorTraining,
    TrainedPrior,
    evaluate_prior,
    load_prior,
    resume_prior,
    train_prior,
)
from fastvq.training.records import read_metrics
from fastvq.training.runs import load_data, load_vqvae
from fastvq.training.settings import TrainingConfig
from fastvq.training.vqvae import VQVAETraining, resume_vqvae, train_vqvae

__all__ = [
    "Codes",
    "Jitter",
    "PriorScore",
    "PriorTraining",
    "Reconstruction",
    "TrainedPrior",
    "TrainingConfig",
    "VQVAETraining",
    "decode_codes",
    "encode_splits",
    "evaluate",
    "evaluate_prior",
    "evaluate_reconstruction",
    "jittered",
    "load_data",
    "load_prior",
    "load_vqvae",
    "read_metrics",
    "reconstruct_images",
    "resume_prior",
    "resume_vqvae",
    "run_demo",
    "sample_images",
    "train_prior",
    "train_vqvae",
]
