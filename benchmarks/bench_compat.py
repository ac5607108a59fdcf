# SPDX-License-Identifier: Apache-2.0
"""``accelerate``: the quantizers of neural codecs, encoding, before and after."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fastvq


class Codec(NamedTuple):
    """A quantizer of transformers at its published size, and ten seconds of its frames."""

    make: Callable[[], nn.Module]
    width: int
    frames: int
    encode: Callable[[nn.Module, Tensor], Tensor]


def _encodec() -> nn.Module:
    from transformers.models.encodec import EncodecConfig
    from transformers.models.encodec.modeling_encodec import EncodecResidualVectorQuantizer

    return EncodecResidualVectorQuantizer(EncodecConfig())


def _mimi() -> nn.Module:
    from transformers.models.mimi import MimiConfig
    from transformers.models.mimi.modeling_mimi import MimiSplitResidualVectorQuantizer

    return MimiSplitResidualVectorQuantizer(MimiConfig())


def _dac() -> nn.Module:
    from transformers.models.dac.modeling_dac import DacResidualVectorQuantizer

    config = SimpleNamespace(
        n_codebooks=9, codebook_size=1024, codebook_dim=8, hidden_size=1024, quantizer_dropout=0
    )
    return DacResidualVectorQuantizer(config)


CODECS = {
    "EnCodec 24 kHz, 32 levels": Codec(_encodec, 128, 750, lambda m, x: m.encode(x, 24.0)),
    "Mimi, 1 + 31 levels": Codec(_mimi, 512, 125, lambda m, x: m.encode(x)),
    "DAC 44 kHz, 9 levels": Codec(_dac, 1024, 861, lambda m, x: m(x)[1]),
}
# a tie to float32's rounding sends a vector its own way through the levels that follow
LEAST_EQUAL = 0.98


def filled(codec: Codec) -> nn.Module:
    """The quantizer with codes as fine as what the level before leaves over."""
    quantizer = codec.make().eval()
    level = 0
    for name, buffer in quantizer.named_buffers():
        if name.endswith((".embed", ".embed_sum")):
            buffer.normal_(std=0.85**level)
            level += 1
    return quantizer


@pytest.mark.parametrize("contender", ["transformers", "fastvq accelerate"])
@pytest.mark.parametrize("name", CODECS)
@torch.no_grad()
def test_encode(row, name, contender):
    codec = CODECS[name]
    before = filled(codec)
    after = copy.deepcopy(before)
    fastvq.accelerate(after)
    x = torch.randn(1, codec.width, codec.frames)
    share = (codec.encode(before, x) == codec.encode(after, x)).double().mean().item()
    assert share >= LEAST_EQUAL, f"only {share:.2%} of the codes stay"
    quantizer = before if contender == "transformers" else after
    row(f"{name}, {codec.frames} frames", contender, lambda: codec.encode(quantizer, x))
