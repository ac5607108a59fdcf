"""lucidrains' VectorQuantize, converted to a VectorQuantizer."""

from __future__ import annotations

import pytest
import torch

import fastvq
from fastvq.compat import from_lucidrains

CONVERTED = {
    "plain": {},
    "cosine": {"use_cosine_sim": True},
    "heads": {"heads": 4, "codebook_dim": 8, "separate_codebook_per_head": True},
    "projected": {"codebook_dim": 8},
    "images": {"accept_image_fmap": True, "codebook_dim": 8},
    "volumes": {"accept_3d_fmap": True},
    "channels first": {"channel_last": False},
    "frozen": {"freeze_codebook": True},
    "revived": {"threshold_ema_dead_code": 2},
}
INPUTS = {"images": (2, 16, 6, 5), "volumes": (2, 16, 3, 4, 5), "channels first": (2, 16, 30)}


def vector_quantize(**options):
    from vector_quantize_pytorch import VectorQuantize

    return VectorQuantize(dim=16, codebook_size=32, **options)


def trained(options, shape):
    module = vector_quantize(decay=0.9, commitment_weight=0.5, **options)
    for _ in range(5):
        module(torch.randn(shape))
    return module.eval()


@pytest.mark.parametrize("name", CONVERTED)
def test_a_converted_quantizer_gives_the_same_codes_and_outputs(name):
    shape = INPUTS.get(name, (2, 60, 16))
    module = trained(CONVERTED[name], shape)
    vq = from_lucidrains(module)
    x = torch.randn(shape)
    quantized, indices, _ = module(x)
    ours = vq(x)
    assert torch.equal(ours.indices, indices)
    torch.testing.assert_close(ours.quantized, quantized, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(vq.decode(indices), quantized, rtol=1e-5, atol=1e-6)
    assert torch.equal(vq.book.vectors, module._codebook.embed)
    assert torch.equal(vq.book.cluster_size, module._codebook.cluster_size)
    assert not vq.training
    assert vq.commitment_weight == 0.5
    frozen = name == "frozen"
    assert vq.book.learning == (fastvq.Frozen() if frozen else fastvq.EMA(decay=0.9))
    assert vq.book.revival == (fastvq.Revival() if name == "revived" else None)
    # nothing is shared, and training goes on
    before = module._codebook.embed.clone()
    vq.train()(x)
    assert torch.equal(module._codebook.embed, before)
    assert torch.equal(vq.book.vectors, before) == frozen


def test_the_loss_in_training_is_the_modules():
    module, x = vector_quantize(commitment_weight=0.5), torch.randn(2, 60, 16)
    vq = from_lucidrains(module)
    assert vq.training
    torch.testing.assert_close(vq(x).loss, module(x)[2])


@pytest.mark.parametrize("cosine", [True, False])
def test_checkpoints_of_old_layouts(cosine):
    module = trained({"use_cosine_sim": cosine, "codebook_dim": 8}, (2, 60, 16))
    old = {name: t.clone() for name, t in module.state_dict().items()}
    old["_codebook.initted"] = torch.tensor([1.0])
    for name in ("embed", "cluster_size"):
        old[f"_codebook.{name}"] = old[f"_codebook.{name}"][0]
    del old["_codebook.embed_avg"]
    fresh = vector_quantize(use_cosine_sim=cosine, codebook_dim=8).eval()
    x = torch.randn(2, 60, 16)
    vq = from_lucidrains(fresh, state_dict=old)
    assert torch.equal(vq(x).indices, module(x)[1])
    torch.testing.assert_close(vq(x).quantized, module(x)[0])


def test_a_module_that_has_not_started_starts_by_k_means():
    module, x = vector_quantize(kmeans_init=True, kmeans_iters=7), torch.randn(2, 60, 16)
    vq = from_lucidrains(module)
    assert vq.book.start == fastvq.KMeans(iterations=7)
    assert not vq.book.started
    vq(x)
    assert vq.book.started


def test_narrow_modules_stay_narrow():
    module = trained({"codebook_dim": 8}, (2, 60, 16)).to(torch.bfloat16)
    vq = from_lucidrains(module)
    assert vq.project_in.weight.dtype == torch.bfloat16
    assert vq.book.vectors.dtype == torch.float32
    x = torch.randn(2, 60, 16, dtype=torch.bfloat16)
    assert torch.equal(vq(x).indices, module(x)[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"heads": 4, "codebook_dim": 8}, "heads that share one codebook"),
        ({"learnable_codebook": True, "ema_update": False}, "a codebook learned by gradient"),
        ({"affine_param": True}, "affine_param"),
        ({"stochastic_sample_codes": True}, "sampled codes"),
        ({"manual_ema_update": True}, "manual_ema_update"),
        ({"codebook_diversity_loss_weight": 0.1}, "a codebook diversity loss"),
        ({"commitment_use_cross_entropy_loss": True}, "a cross entropy for a commitment loss"),
        ({"codebook_dim": 8, "layernorm_after_project_in": True}, "layernorm_after_project_in"),
    ],
)
def test_what_cannot_be_converted_is_named(options, words):
    with pytest.raises(ValueError, match=f"a VectorQuantizer has no {words}"):
        from_lucidrains(vector_quantize(**options))


def test_other_modules_and_checkpoints_are_refused():
    with pytest.raises(TypeError, match="module must be a VectorQuantize, got Linear"):
        from_lucidrains(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"state_dict must hold _codebook.embed, got \['weight'\]"):
        from_lucidrains(vector_quantize(), state_dict={"weight": torch.ones(1)})
