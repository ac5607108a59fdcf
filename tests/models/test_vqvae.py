# SPDX-License-Identifier: Apache-2.0
"""What is the VQ-VAE's own; what it shares with the others is in test_autoencoder.py."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvq.models import VQVAE, VQVAEConfig
from fastvq.nn import VectorQuantizer

from .conftest import make, started

SMALL = {"hidden_channels": 8, "residual_channels": 4, "codebook_size": 16, "codebook_dim": 4}


def small(**options) -> VQVAE:
    return VQVAE(VQVAEConfig(**(SMALL | options)))


def test_the_reconstruction_loss_reaches_the_encoder_straight_through_the_codes():
    model = small()
    x = torch.rand(4, 1, 8, 8)
    model(x)  # starts the codebook
    model.eval()
    parameters = list(model.encoder.parameters())
    found = torch.autograd.grad(model(x).reconstruction_loss, parameters)

    vectors = model.encoder(x)
    codes = model.quantizer.decode(model.quantizer.encode(vectors)).detach().requires_grad_()
    error = (model.decoder(codes) - x).square().mean()
    expected = torch.autograd.grad(vectors, parameters, torch.autograd.grad(error, codes))
    for got, wanted in zip(found, expected, strict=True):
        assert wanted.norm() > 0
        # the same operations in float32; a code may be one rounding off in forward
        assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_the_loss_is_the_written_formula():
    model = small(commitment_weight=0.7)
    x = torch.rand(3, 1, 8, 8)
    model(x)  # starts the codebook
    model.eval()
    out = model(x)
    vectors = model.encoder(x)
    codes = model.quantizer.codebook[out.indices].movedim(-1, 1)
    torch.testing.assert_close(out.reconstruction_loss, (out.reconstruction - x).square().mean())
    torch.testing.assert_close(out.quantizer_loss, 0.7 * (vectors - codes).square().mean())
    torch.testing.assert_close(out.loss, out.reconstruction_loss + out.quantizer_loss)


def test_separate_codebooks_split_the_channels():
    model = started(make(quantizer="vq-grouped"), 8, 8).eval()
    x = torch.rand(2, 1, 8, 8)
    vectors = model.encoder(x)
    parts = []
    for group, part in enumerate(vectors.chunk(3, 1)):
        alone = VectorQuantizer(2, 16, channel_dim=1).eval()
        alone.book.vectors.copy_(model.quantizer.codebook[group])
        parts.append(alone.encode(part))
    indices = model.encode(x)
    assert indices.shape == (2, 4, 4, 3)
    assert torch.equal(indices, torch.stack(parts, -1))


def test_residual_codebooks_are_levels():
    model = started(make(quantizer="residual"), 8, 8).eval()
    vectors, indices = model.encoder(torch.rand(2, 1, 8, 8)), None
    indices = model.quantizer.encode(vectors)
    codes = model.quantizer.codebook
    total = codes[0][indices[..., 0]] + codes[1][indices[..., 1]]
    torch.testing.assert_close(model.quantizer.decode(indices), total.movedim(-1, 1))


@pytest.mark.parametrize(
    ("quantizer", "default"), [("vq", 0.25), ("residual", 0.25), ("simvq", 0.25), ("lfq", 0.02)]
)
def test_the_commitment_weight_reaches_the_quantizer(quantizer, default):
    assert make(quantizer=quantizer).quantizer.commitment_weight == default
    assert make(quantizer=quantizer, commitment_weight=3.0).quantizer.commitment_weight == 3.0


def test_how_codebooks_learn():
    assert make().quantizer.book.learning.decay == 0.99
    assert make(quantizer="residual", decay=0.5).quantizer.book.learning.decay == 0.5
    assert isinstance(make(learning="gradient").quantizer.book.vectors, torch.nn.Parameter)


def test_names_of_the_weights_stay():
    model = VQVAE(VQVAEConfig(residual_blocks=1, attention_heads=2))
    ends = ("weight", "bias")
    layers = [f"encoder.layers.{i}.{end}" for i in (0, 2, 5) for end in ends]
    layers += [f"decoder.layers.{i}.{end}" for i in (0, 3, 5) for end in ends]
    for side, stack in (("encoder", 3), ("decoder", 1)):
        layers += [f"{side}.layers.{stack}.0.body.{i}.{end}" for i in (1, 3) for end in ends]
        layer = f"{side}.layers.{stack + 1}"
        layers += [f"{layer}.norm.{end}" for end in ends]
        layers += [f"{layer}.qkv.weight", *(f"{layer}.out.{end}" for end in ends)]
    book = ("vectors", "cluster_size", "started")
    layers += [f"quantizer.book.{name}" for name in book]
    assert sorted(model.state_dict()) == sorted(layers)


def test_refused_indices():
    with pytest.raises(ValueError, match=r"indices must have 3 dimensions.*got \[4, 4\]"):
        small().decode(torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"4 dimensions, batch and grid and codebooks, got"):
        small(codebooks=2).decode(torch.zeros(1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"indices must be \[..., H\] with H = 2, got"):
        small(codebooks=2).decode(torch.zeros(1, 4, 4, 3, dtype=torch.int64))
    with pytest.raises(IndexError, match=r"in \[-1, K = 16\), got 700"):
        small().decode(torch.full((1, 4, 4), 700))
    with pytest.raises(TypeError, match="indices must be integers, got float32"):
        small().decode(torch.zeros(1, 4, 4))


def test_a_loaded_codebook_counts_as_started(tmp_path):
    model = started(small(), 8, 8).eval()
    model.save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path)
    # training goes on from it instead of from k-means
    before = loaded.quantizer.codebook.clone()
    loaded.train()(torch.rand(4, 1, 8, 8))
    assert (loaded.quantizer.codebook - before).abs().max() < before.abs().max()


def edit(folder, **changes):
    path = folder / "config.json"
    document = json.loads(path.read_text())
    document.update(changes)
    path.write_text(json.dumps(document))


def test_refused_checkpoints(tmp_path):
    small().save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "config.json").read_text())

    edit(tmp_path, config=whole["config"] | {"codebok_size": 3})
    with pytest.raises(ValueError, match="'codebok_size'; did you mean 'codebook_size'"):
        VQVAE.from_pretrained(tmp_path)
    edit(tmp_path, config=whole["config"] | {"codebook_size": "many"})
    with pytest.raises(TypeError, match="codebook_size must be int, got str 'many'"):
        VQVAE.from_pretrained(tmp_path)
    edit(tmp_path, config=whole["config"] | {"codebook_size": 32})
    with pytest.raises(ValueError, match=r"must be float32 \[1, 32.*got float32 \[1, 16"):
        VQVAE.from_pretrained(tmp_path)
    edit(tmp_path, config=whole["config"], format_version=2)
    with pytest.raises(ValueError, match="format_version must be 1, got 2"):
        VQVAE.from_pretrained(tmp_path)
    edit(tmp_path, format_version=1, kind="VQVAE2")
    with pytest.raises(ValueError, match="kind must be VQVAE, got 'VQVAE2'"):
        VQVAE.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        VQVAE.from_pretrained(tmp_path / "elsewhere")


def test_refused_weights(tmp_path):
    small().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    name = "encoder.layers.0.bias"

    save_file({n: t for n, t in tensors.items() if n != name}, path)
    with pytest.raises(ValueError, match=f"missing \\['{name}'\\]"):
        VQVAE.from_pretrained(tmp_path)
    save_file(tensors | {name: tensors[name].double()}, path)
    with pytest.raises(ValueError, match=f"{name} must be float32 .*got float64"):
        VQVAE.from_pretrained(tmp_path)
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        VQVAE.from_pretrained(tmp_path)
