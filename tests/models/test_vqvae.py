# SPDX-License-Identifier: Apache-2.0
import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvq.models import VQVAE, VQVAEConfig

SMALL = {"hidden_channels": 8, "residual_channels": 4, "codebook_size": 16, "codebook_dim": 4}
SHAPES = {1: (12,), 2: (8, 12), 3: (4, 8, 4)}


def small(**options) -> VQVAE:
    return VQVAE(VQVAEConfig(**(SMALL | options)))


@pytest.mark.parametrize("learning", ["ema", "gradient"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(dims, learning):
    model = small(spatial_dims=dims, in_channels=2, strides=(2, 2), learning=learning)
    # the first batch starts the codebook by k-means, at whose centres its gradient vanishes
    model(torch.rand(4, 2, *SHAPES[dims]))
    model(torch.rand(4, 2, *SHAPES[dims])).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


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


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_shapes(dims):
    model = small(spatial_dims=dims, in_channels=3, strides=(4,))
    x = torch.rand(2, 3, *SHAPES[dims])
    out = model(x)
    grid = tuple(size // 4 for size in SHAPES[dims])
    assert out.reconstruction.shape == x.shape
    assert out.indices.shape == (2, *grid)
    assert out.indices.dtype == torch.int64
    assert out.loss.shape == ()


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


def test_decoding_what_was_encoded_is_the_reconstruction_of_forward():
    model = small()
    x = torch.rand(5, 1, 8, 8)
    model(x)
    model.eval()
    out = model(x)
    assert torch.equal(model.encode(x), out.indices)
    assert torch.equal(model.decode(out.indices), model.reconstruct(x))
    # the straight-through output is x + (code - x) in some backends: one rounding away
    torch.testing.assert_close(out.reconstruction, model.reconstruct(x), rtol=0, atol=1e-6)


def test_any_size_that_the_stride_divides():
    model = small(strides=(2, 3))
    for height, width in ((6, 12), (18, 6), (30, 24)):
        assert model(torch.rand(1, 1, height, width)).reconstruction.shape[2:] == (height, width)


def test_eval_changes_nothing():
    model = small().eval()
    before = copy.deepcopy(model.state_dict())
    model(torch.rand(4, 1, 8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 7, 8), r"multiple of the stride 2, got \[7, 8\]"),
        ((2, 1, 0, 8), r"multiple of the stride 2, got \[0, 8\]"),
        ((2, 3, 8, 8), r"C = 1 and 2 axes after it, got \[2, 3, 8, 8\]"),
        ((1, 8, 8), r"C = 1 and 2 axes after it, got \[1, 8, 8\]"),
    ],
)
def test_refused_data(shape, message):
    with pytest.raises(ValueError, match=message):
        small()(torch.zeros(shape))
    with pytest.raises(ValueError, match=message):
        small().encode(torch.zeros(shape))


def test_refused_dtypes_and_indices():
    with pytest.raises(TypeError, match=r"x must be float32.*got uint8"):
        small()(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"indices must have 3 dimensions.*got \[4, 4\]"):
        small().decode(torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(IndexError, match=r"in \[-1, K = 16\), got 700"):
        small().decode(torch.full((1, 4, 4), 700))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codebook_size": 0}, ValueError, "codebook_size must be at least 1, got 0"),
        ({"hidden_channels": 1.5}, TypeError, "hidden_channels must be an int, got float"),
        ({"residual_blocks": -1}, ValueError, "residual_blocks must be at least 0, got -1"),
        ({"strides": ()}, ValueError, "strides must be one or more ints >= 2"),
        ({"strides": (1, 2)}, ValueError, r"got \[1, 2\]"),
        ({"learning": "emo"}, ValueError, "did you mean 'ema'"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims must be 1, 2 or 3, got 4"),
    ],
)
def test_refused_configs(options, error, message):
    with pytest.raises(error, match=message):
        VQVAEConfig(**options)


def test_saved_and_loaded_it_is_the_same_model(tmp_path):
    model = small(strides=(2, 2), in_channels=3)
    x = torch.rand(4, 3, 16, 8)
    model(x)
    model.eval().save_pretrained(tmp_path)
    loaded = VQVAE.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded.encode(x), model.encode(x))
    assert torch.equal(loaded.reconstruct(x), model.reconstruct(x))
    # the codebook counts as started: training goes on from it instead of from k-means
    before = loaded.quantizer.codebook.clone()
    loaded.train()(x)
    assert (loaded.quantizer.codebook - before).abs().max() < (before.abs().max())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


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
