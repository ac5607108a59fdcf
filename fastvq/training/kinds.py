# SPDX-License-Identifier: Apache-2.0
"""The models that can be trained, by name, and loading whichever a folder holds."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvq import _checks, _config, _files, _pretrained
from fastvq.data import ExampleSet
from fastvq.models import (
    VQVAE,
    VQVAE2,
    AutoEncoderConfig,
    Coder,
    WaveNetVQVAE,
    WaveNetVQVAEConfig,
)

ModelConfig = AutoEncoderConfig | WaveNetVQVAEConfig
MODELS: dict[str, type[Coder]] = {
    "vqvae": VQVAE,
    "vqvae2": VQVAE2,
    "wavenet_vqvae": WaveNetVQVAE,
}


def model_name(config: ModelConfig) -> str:
    """The name of the model that a config is of."""
    return next(name for name, model in MODELS.items() if type(config) is model.config_class)


def make_model(config: ModelConfig) -> Coder:
    """An untrained model."""
    return MODELS[model_name(config)](config)


def config_for(examples: ExampleSet, name: str, values: Mapping[str, Any]) -> ModelConfig:
    """The config of the model of that name for some data: what the data decides, then ``values``.

    Args:
        examples: decides the channels, the axes, the levels of a discrete likelihood and, where
            there are classes, the speakers of a decoder that is told them.
        name: one of `MODELS`.
        values: fields of the config.

    Raises:
        ValueError, TypeError: an unknown model or field, or a value that the config refuses.
    """
    _checks.one_of("model", name, MODELS)
    decided: dict[str, Any] = {
        "in_channels": examples.channels,
        "spatial_dims": len(examples.size),
    }
    config = MODELS[name].config_class
    if config is WaveNetVQVAEConfig or values.get("likelihood", "mse") != "mse":
        decided["levels"] = examples.levels
    if config is WaveNetVQVAEConfig:
        decided["num_speakers"] = len(examples.classes) or None
    return _config.from_dict(config, decided | dict(values), where="model")


def load_pretrained(folder: str | os.PathLike[str]) -> Coder:
    """The model saved in ``folder``, of whatever kind, on the CPU in eval mode.

    Raises:
        FileNotFoundError, ValueError: a file is missing, damaged, or of no model known here.
    """
    path = Path(folder) / _pretrained.CONFIG_NAME
    kinds = {model.__name__: model for model in MODELS.values()}
    kind = _files.read_json(path).get("kind")
    _checks.one_of(f"kind in {path}", kind, kinds)
    return kinds[str(kind)].from_pretrained(folder)
