"""Small models of every known library, with random weights, and how codes are compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn


class Peer(NamedTuple):
    """A model that holds a known quantizer, an input for it, and how many modules are swapped."""

    make: Callable[[], nn.Module]
    x: tuple[int, ...]
    swapped: int


def encodec() -> nn.Module:
    from transformers import EncodecConfig, EncodecModel

    config = EncodecConfig(
        num_filters=4,
        hidden_size=16,
        codebook_dim=16,
        codebook_size=64,
        upsampling_ratios=[4, 2],
        num_lstm_layers=1,
        norm_type="time_group_norm",  # a model with weight_norm cannot be pickled
        sampling_rate=8000,
        target_bandwidths=[24.0],
    )
    model = EncodecModel(config)
    for layer in model.quantizer.layers:
        layer.codebook.embed.normal_(std=0.1)
    return model


def mimi() -> nn.Module:
    from transformers import MimiConfig, MimiModel

    config = MimiConfig(
        hidden_size=32,
        num_filters=4,
        upsampling_ratios=[4, 2],
        codebook_size=64,
        codebook_dim=16,
        num_quantizers=4,
        vector_quantization_hidden_dimension=16,
        num_hidden_layers=1,
        intermediate_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        upsample_groups=32,
        sampling_rate=8000,
    )
    model = MimiModel(config)
    for name, buffer in model.named_buffers():
        if name.endswith("embed_sum"):
            buffer.normal_(std=0.1)
        if name.endswith("cluster_usage"):
            buffer.uniform_(0.5, 2)
    return model


def dac() -> nn.Module:
    from transformers import DacConfig, DacModel

    return DacModel(
        DacConfig(
            encoder_hidden_size=4,
            decoder_hidden_size=32,
            downsampling_ratios=[2, 4],
            upsampling_ratios=[4, 2],
            n_codebooks=3,
            codebook_size=64,
            codebook_dim=8,
        )
    )


def vq_model() -> nn.Module:
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(32,), num_vq_embeddings=64, vq_embed_dim=4, latent_channels=4
    )


def vector_quantize(**options: Any) -> nn.Module:
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(dim=16, codebook_size=64, **options)


def residual_vq(**options: Any) -> nn.Module:
    from vector_quantize_pytorch import ResidualVQ

    return ResidualVQ(dim=16, codebook_size=64, num_quantizers=3, **options)


HEADS = {"heads": 4, "codebook_dim": 8, "separate_codebook_per_head": True}
ROWS = (2, 100, 16)
PEERS = {
    "encodec": Peer(encodec, (1, 1, 1600), 5),
    "mimi": Peer(mimi, (2, 1, 1600), 6),
    "dac": Peer(dac, (2, 1, 1600), 3),
    "diffusers": Peer(vq_model, (2, 3, 8, 8), 1),
    "lucidrains": Peer(vector_quantize, ROWS, 2),
    "lucidrains cosine": Peer(lambda: vector_quantize(use_cosine_sim=True), ROWS, 2),
    "lucidrains heads": Peer(lambda: vector_quantize(**HEADS), ROWS, 2),
    "lucidrains shared heads": Peer(lambda: vector_quantize(heads=4, codebook_dim=8), ROWS, 2),
    "lucidrains images": Peer(
        lambda: vector_quantize(accept_image_fmap=True, codebook_dim=8), (2, 16, 6, 5), 2
    ),
    "lucidrains learned": Peer(
        lambda: vector_quantize(learnable_codebook=True, ema_update=False), ROWS, 2
    ),
    "lucidrains residual": Peer(residual_vq, ROWS, 6),
    # one codebook in three quantizers
    "lucidrains shared": Peer(lambda: residual_vq(shared_codebook=True), ROWS, 4),
}


@pytest.fixture(autouse=True)
def _one_thread():
    # threads cost more than these sizes gain, and on a busy machine several times that
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=PEERS)
def peer(request: pytest.FixtureRequest) -> Peer:
    return PEERS[request.param]


@pytest.fixture
def peers() -> dict[str, Peer]:
    return PEERS


@pytest.fixture
def tensors() -> Callable[[object], list[Tensor]]:
    """All tensors of an output of whatever kind, in order."""

    def collect(value: object) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        if isinstance(value, dict):
            value = list(value.values())
        return (
            [t for item in value for t in collect(item)] if isinstance(value, list | tuple) else []
        )

    return collect


@pytest.fixture
def assert_same_codes() -> Callable[..., None]:
    """Indices ``[N]`` of x ``[N, D]``: equal, or a near-tie of which ours is the nearer."""

    def check(x: Tensor, codebook: Tensor, theirs: Tensor, ours: Tensor) -> None:
        assert theirs.shape == ours.shape
        assert theirs.dtype == ours.dtype == torch.int64
        rows, codes = x.double(), codebook.double()
        d_theirs, d_ours = ((rows - codes[i]).square().sum(-1) for i in (theirs, ours))
        # four roundings of float32, each relative to the terms of the expanded square
        terms = rows.square().sum(-1) + codes[theirs].square().sum(-1)
        parts = theirs != ours
        assert (d_ours <= d_theirs * (1 + 1e-5))[parts].all()
        assert (d_theirs - d_ours <= (x.shape[-1] + 4) * 2.0**-23 * terms)[parts].all()

    return check


@pytest.fixture
def assert_same_levels(assert_same_codes: Callable[..., None]) -> Callable[..., None]:
    """The same for residual indices ``[Q, N]``; after a near-tie a vector goes its own way."""

    def check(x: Tensor, codebooks: list[Tensor], theirs: Tensor, ours: Tensor) -> None:
        assert theirs.shape == ours.shape == (len(codebooks), len(x))
        together = torch.arange(len(x))
        for codebook, a, b in zip(codebooks, theirs, ours, strict=True):
            a, b = a[together], b[together]
            assert_same_codes(x, codebook, a, b)
            x, together = (x - codebook[a])[a == b], together[a == b]
        assert len(together) > 0.99 * theirs.shape[1]

    return check
