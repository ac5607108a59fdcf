# SPDX-License-Identifier: Apache-2.0
"""Priors of any kind from their configs, into a folder and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from fastvq import _checks, _files, _pretrained
from fastvq.priors.base import Prior, PriorConfig
from fastvq.priors.kinds import KINDS, config_for, prior_class
from fastvq.priors.levels import LevelPrior, LevelPriorConfig


def build(name: str, **values: Any) -> Prior:
    """An untrained prior by its name in ``KINDS``.

    Args:
        name: e.g. ``"pixelsnail"``.
        **values: fields of its config.

    Raises:
        ValueError, TypeError: an unknown prior or field (the nearest is named), or a value that
            the config refuses.

    Example:
        >>> build("gated_pixelcnn", codebook_size=64, channels=32).config.channels
        32
    """
    return make(config_for(name, values))


def make(config: PriorConfig | LevelPriorConfig) -> Prior:
    """The untrained prior that a config is of.

    Raises:
        TypeError: it is of none.
    """
    if isinstance(config, LevelPriorConfig):
        return LevelPrior(config)
    return prior_class(config)(config)


def save(folder: str | os.PathLike[str], prior: Prior) -> None:
    """Writes ``config.json`` and ``model.safetensors`` (needs the ``train`` extra)."""
    _pretrained.save(folder, prior, prior.config)


def load(folder: str | os.PathLike[str]) -> Prior:
    """The prior saved in ``folder``, of whatever kind, on the CPU in eval mode.

    Raises:
        FileNotFoundError, ValueError, TypeError: a file is missing, damaged, or of no prior.
    """
    path = Path(folder) / _pretrained.CONFIG_NAME
    configs: dict[str, type] = {kind.prior.__name__: kind.config for kind in KINDS.values()}
    configs[LevelPrior.__name__] = LevelPriorConfig
    kind = str(_files.read_json(path).get("kind"))
    _checks.one_of(f"kind in {path}", kind, configs)
    prior = make(_pretrained.load_config(folder, kind, configs[kind]))
    _pretrained.load_weights(folder, prior)
    return prior.eval()
