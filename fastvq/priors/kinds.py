# SPDX-License-Identifier: Apache-2.0
"""The priors by name, so that training and the command line can choose one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from fastvq import _checks, _config
from fastvq.priors.base import Prior, PriorConfig
from fastvq.priors.pixelcnn import GatedPixelCNN, GatedPixelCNNConfig
from fastvq.priors.pixelsnail import PixelSNAIL, PixelSNAILConfig
from fastvq.priors.transformer import Transformer, TransformerConfig
from fastvq.priors.video import VideoPixelCNN, VideoPixelCNNConfig
from fastvq.priors.wavenet import WaveNet, WaveNetConfig


class Kind(NamedTuple):
    """A prior and what it is made from."""

    config: type[PriorConfig]
    prior: type[Prior]


KINDS = {
    "gated_pixelcnn": Kind(GatedPixelCNNConfig, GatedPixelCNN),
    "pixelsnail": Kind(PixelSNAILConfig, PixelSNAIL),
    "transformer": Kind(TransformerConfig, Transformer),
    "video_pixelcnn": Kind(VideoPixelCNNConfig, VideoPixelCNN),
    "wavenet": Kind(WaveNetConfig, WaveNet),
}


def config_for(name: str, values: Mapping[str, Any]) -> PriorConfig:
    """The config of the prior of that name from plain values.

    Args:
        name: one of ``KINDS``.
        values: fields of its config.

    Raises:
        ValueError, TypeError: an unknown prior or field (the nearest is named), or a value that
            the config refuses.
    """
    _checks.one_of("prior", name, KINDS)
    return _config.from_dict(KINDS[name].config, values, where=name)


def prior_class(config: PriorConfig) -> type[Prior]:
    """The class of prior that a config is of.

    Raises:
        TypeError: it is of none in ``KINDS``.
    """
    for kind in KINDS.values():
        if type(config) is kind.config:
            return kind.prior
    known = ", ".join(kind.config.__name__ for kind in KINDS.values())
    raise TypeError(f"config must be one of {known}, got {type(config).__name__}")
