# SPDX-License-Identifier: Apache-2.0
"""Autoregressive priors over grids of codes, and exact sampling from them."""

from fastvq.priors._recompute_stepper import RecomputeStepper
from fastvq.priors.base import Context, PeriodicStepper, Prior, PriorConfig, Stepper
from fastvq.priors.building import build, load, make, save
from fastvq.priors.kinds import KINDS, Kind, config_for
from fastvq.priors.levels import LevelContext, LevelContextConfig, LevelPrior, LevelPriorConfig
from fastvq.priors.metrics import bits_per_code, entropy_bits, per_position_bits
from fastvq.priors.pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from fastvq.priors.pixelsnail import PixelSNAIL, PixelSNAILConfig
from fastvq.priors.sampling import probabilities, sample, sample_from
from fastvq.priors.transformer import Transformer, TransformerConfig
from fastvq.priors.video import VideoPixelCNN, VideoPixelCNNConfig
from fastvq.priors.wavenet import WaveNet, WaveNetConfig

__all__ = [
    "KINDS",
    "Context",
    "GatedPixelCNN",
    "GatedPixelCNNConfig",
    "Kind",
    "LevelContext",
    "LevelContextConfig",
    "LevelPrior",
    "LevelPriorConfig",
    "PeriodicStepper",
    "PixelSNAIL",
    "PixelSNAILConfig",
    "Prior",
    "PriorConfig",
    "RecomputeStepper",
    "Stepper",
    "Transformer",
    "TransformerConfig",
    "VideoPixelCNN",
    "VideoPixelCNNConfig",
    "WaveNet",
    "WaveNetConfig",
    "bits_per_code",
    "build",
    "config_for",
    "entropy_bits",
    "load",
    "make",
    "per_position_bits",
    "probabilities",
    "sample",
    "sample_from",
    "save",
]
