# SPDX-License-Identifier: Apache-2.0
"""What holds for every model, whatever its levels, quantizer, likelihood and axes."""

import copy
import math

import pytest
import torch

from fastvq.models import VQVAE, VQVAE2, VQVAEConfig

from .conftest import batch, make, started

SIZES = {1: (12,), 2: (12, 20), 3: (4, 8, 12)}
MODELS = {"VQVAE": VQVAE, "VQVAE2": VQVAE2}


def assert_all_learn(model, loss):
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


def test_every_parameter_gets_a_finite_gradient_that_is_not_zero(kind, quantizer, likelihood):
    model = make(kind, quantizer, likelihood, in_channels=3)
    if quantizer == "fsq":
        # all its codes are zero before training, and from zeros the next layer learns nothing
        last = [model.encoder.layers[-1]] if kind == "VQVAE" else model.projections
        with torch.no_grad():
            for layer in last:
                layer.weight.mul_(30)
    # the first batch starts codebooks by k-means, at whose centres their gradient vanishes
    started(model, 8, 8)
    assert_all_learn(model, model(batch(model, 8, 8)).loss)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_with_attention_too_in_any_number_of_axes(kind, dims):
    options = {"spatial_dims": dims, "attention_heads": 2, "hidden_channels": 24, "in_channels": 2}
    model = started(make(kind, **options), *SIZES[dims])
    assert_all_learn(model, model(batch(model, *SIZES[dims])).loss)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_shapes(kind, dims, likelihood):
    model = make(kind, "vq-grouped", likelihood, spatial_dims=dims, in_channels=3)
    x = batch(model, *SIZES[dims], examples=2)
    out = model(x)
    assert out.reconstruction.shape == x.shape
    assert not out.reconstruction.requires_grad
    assert out.parameters.shape[1] == model.likelihood.parameter_channels(3)
    assert out.loss.shape == out.reconstruction_loss.shape == out.quantizer_loss.shape == ()
    grids = model.encode_grids(x)
    # the top first
    strides = (2,) if kind == "VQVAE" else (4, 2)
    for indices, stride in zip(grids, strides, strict=True):
        assert indices.shape == (2, *(size // stride for size in SIZES[dims]), 3)
        assert indices.dtype == torch.int64
    assert tuple(g.shape[1:] for g in grids) == model.grid_shapes(*SIZES[dims])
    assert model.decode_grids(grids).shape == x.shape


def test_odd_strides_and_odd_sizes(kind):
    strides = (3, 5) if kind == "VQVAE" else ((3,), (5,))
    model = make(kind, strides=strides)
    assert model.config.stride == (15, 15)
    for height, width in ((15, 45), (45, 15)):
        x = batch(model, height, width)
        assert model(x).reconstruction.shape == x.shape
        assert model.encode_grids(x)[0].shape == (4, height // 15, width // 15)


def test_video_may_keep_its_frames(kind):
    strides, times = ((2, 2), (1, 2)) if kind == "VQVAE" else (((2,), (2,)), ((1,), (2,)))
    model = make(kind, spatial_dims=3, strides=strides, time_strides=times)
    assert model.config.stride == (2, 4, 4)
    x = batch(model, 6, 8, 12)
    assert model.encode_grids(x)[0].shape == (4, 3, 2, 3)
    assert model(x).reconstruction.shape == x.shape
    if kind == "VQVAE2":
        assert model.level_strides == ((2, 4, 4), (1, 2, 2))
    with pytest.raises(ValueError, match=r"stride \[2, 4, 4\], got \[5, 8, 12\]"):
        model(batch(model, 5, 8, 12))


def test_a_wider_kernel_sees_farther(kind):
    narrow, wide = make(kind), make(kind, kernel_size=5)
    shapes = {tuple(p.shape[2:]) for p in wide.parameters() if p.ndim == 4}
    assert shapes == {(1, 1), (4, 4), (5, 5)}
    assert {tuple(p.shape[2:]) for p in narrow.parameters() if p.ndim == 4} >= {(3, 3)}
    assert wide(batch(wide, 8, 8)).reconstruction.shape == (4, 1, 8, 8)


def test_the_loss_is_the_sum_of_its_parts(kind, likelihood):
    model = started(make(kind, likelihood=likelihood), 8, 8).eval()
    x = batch(model, 8, 8)
    out = model(x)
    torch.testing.assert_close(out.loss, out.reconstruction_loss + out.quantizer_loss)
    found = model.likelihood.loss(model.distribution(model.encode_grids(x)), x)
    torch.testing.assert_close(out.reconstruction_loss, found)
    torch.testing.assert_close(out.reconstruction, model.likelihood.mean(out.parameters))


def test_decoding_what_was_encoded_is_the_reconstruction_of_forward(kind, quantizer):
    model = started(make(kind, quantizer), 8, 12).eval()
    x = batch(model, 8, 12)
    out = model(x)
    indices = model.encode(x)
    if kind == "VQVAE":
        assert torch.equal(indices, out.indices)
    else:
        assert all(torch.equal(a, b) for a, b in zip(indices, out.indices, strict=True))
    assert torch.equal(model.decode(indices), model.reconstruct(x))
    assert torch.equal(model.decode(indices), model.decode_grids(model.encode_grids(x)))
    # the straight-through output is x + (code - x) in some backends: one rounding away
    torch.testing.assert_close(out.reconstruction, model.reconstruct(x), rtol=0, atol=1e-6)


def test_saved_and_loaded_it_is_the_same_model(kind, quantizer, tmp_path):
    model = started(make(kind, quantizer, "logistic_mixture", attention_heads=1), 8, 12).eval()
    x = batch(model, 8, 12)
    grids = model.encode_grids(x)
    model.save_pretrained(tmp_path)
    loaded = MODELS[kind].from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    for found, expected in zip(loaded.encode_grids(x), grids, strict=True):
        assert torch.equal(found, expected)
    assert torch.equal(loaded.decode_grids(grids), model.decode_grids(grids))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_video_settings_survive_a_file(kind, tmp_path):
    strides, times = ((2, 2), (1, 2)) if kind == "VQVAE" else (((2,), (2,)), ((1,), (2,)))
    model = make(kind, "fsq", spatial_dims=3, strides=strides, time_strides=times)
    model.save_pretrained(tmp_path)
    assert MODELS[kind].from_pretrained(tmp_path).config == model.config


def test_eval_changes_nothing(kind, quantizer):
    model = started(make(kind, quantizer, "softmax"), 8, 8).eval()
    before = copy.deepcopy(model.state_dict())
    model(batch(model, 8, 8))
    # nor does encoding and measuring, in training mode
    model.train()
    model.reconstruct(batch(model, 8, 8))
    model.bits_per_dim(batch(model, 8, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_training_is_deterministic(kind):
    def trained():
        torch.manual_seed(3)
        model = make(kind, "vq-grouped", "logistic_mixture", attention_heads=1)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(batch(model, 8, 8)).loss.backward()
            optimizer.step()
        return model.state_dict()

    first, second = trained(), trained()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_few_steps_learn(kind, likelihood):
    model = make(kind, likelihood=likelihood)
    levels = model.config.levels or 256
    x = batch(model, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        out = model(x)
        out.loss.backward()
        optimizer.step()
        losses.append(out.reconstruction_loss.item())
    # over three seeds and both models, seen: a fifth at most of the first squared error, and 0.35
    # and 0.971 of the uniform model's nats
    if likelihood == "mse":
        assert losses[-1] < 0.3 * losses[0]
    else:
        assert losses[-1] < {6: 0.5, 256: 0.985}[levels] * math.log(levels)


def test_an_untrained_uniform_model_costs_log2_levels(kind, quantizer):
    model = make(kind, quantizer, "softmax", in_channels=3)
    decoder = model.decoder if kind == "VQVAE" else model.decoders[0]
    for parameter in decoder.layers[-1].parameters():
        torch.nn.init.zeros_(parameter)
    bits = model.bits_per_dim(batch(model, 8, 8))
    torch.testing.assert_close(
        bits.reconstruction, torch.full((4,), math.log2(6)), rtol=0, atol=1e-6
    )
    codes = {"vq-grouped": 3, "residual": 2}.get(quantizer, 1) * (16 if kind == "VQVAE" else 20)
    nominal = codes * math.log2(model.config.codebook_size)
    torch.testing.assert_close(bits.codes, torch.full((4,), nominal / (3 * 64)))
    torch.testing.assert_close(bits.total, bits.reconstruction + bits.codes)
    assert model.nominal_bits(8, 8) == pytest.approx(nominal)


def test_bits_under_a_prior(kind, likelihood):
    model = started(make(kind, likelihood=likelihood), 8, 8).eval()
    x = batch(model, 8, 8)
    if likelihood == "mse":
        with pytest.raises(TypeError, match="nll must be of a discrete likelihood"):
            model.bits_per_dim(x)
        return
    measured = torch.tensor([1.0, 2.0, 3.0, 64.0])
    bits = model.bits_per_dim(x, measured)
    torch.testing.assert_close(bits.codes, measured / 64)
    torch.testing.assert_close(bits.total, bits.reconstruction + measured / 64)
    torch.testing.assert_close(model.bits_per_dim(x, 32.0).codes, torch.full((4,), 0.5))
    loss = model(x).reconstruction_loss / math.log(2)
    torch.testing.assert_close(bits.reconstruction.mean(), loss)
    with pytest.raises(ValueError, match=r"code_bits must be a number or \[B\] with B = 4, got"):
        model.bits_per_dim(x, torch.ones(3))


def test_bits_are_a_bound():
    """On data so small that p(x) is a sum over all codes that can be written down."""
    model = started(make(likelihood="softmax", codebook_size=4, strides=(2,)), 4, 4).eval()
    x = batch(model, 2, 4, examples=3)
    codes = torch.cartesian_prod(torch.arange(4), torch.arange(4)).view(16, 1, 2)
    parameters = model.distribution((codes,)).double()
    repeated = x.double().unsqueeze(1).expand(-1, 16, -1, -1, -1)
    nats = torch.stack([model.likelihood.nll(parameters, one) * 8 for one in repeated])  # [3, 16]
    exact = (math.log(16) - torch.logsumexp(-nats, 1)) / math.log(2)
    bits = model.bits_per_dim(x).total * 8
    # one of the sixteen terms of the sum, and so always more
    assert (bits > exact).all()
    own = nats.gather(1, (model.encode(x)[:, 0] @ torch.tensor([4, 1])).unsqueeze(1))[:, 0]
    torch.testing.assert_close(bits, (own / math.log(2) + 4).float())


def test_a_compiled_step_is_one_graph(kind):
    model = started(make(kind), 8, 8)
    x = batch(model, 8, 8)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = compiled(x)
    found.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    # a step of the codebook apart
    torch.testing.assert_close(found.loss, expected.loss, rtol=0.05, atol=0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 1, 6, 8), r"multiple of the stride 4, got \[6, 8\]"),
        ((2, 1, 0, 8), r"multiple of the stride 4, got \[0, 8\]"),
        ((2, 3, 8, 8), r"C = 1 and 2 axes after it, got \[2, 3, 8, 8\]"),
        ((1, 8, 8), r"C = 1 and 2 axes after it, got \[1, 8, 8\]"),
    ],
)
def test_refused_data(kind, shape, message):
    model = make(kind, strides=(4,) if kind == "VQVAE" else ((2,), (2,)))
    for call in (model, model.encode, model.reconstruct):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(shape))


def test_refused_values_and_sizes(kind):
    model = make(kind, likelihood="softmax")
    with pytest.raises(ValueError, match=r"multiples of 1/5 in \[0, 1\], got 0.5"):
        model(torch.full((1, 1, 8, 8), 0.5))
    with pytest.raises(TypeError, match=r"x must be float32.*got uint8"):
        model(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"size must have 2 axes, got \[8\]"):
        model.grid_shapes(8)
    with pytest.raises(ValueError, match="multiple of the stride"):
        model.nominal_bits(7, 8)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"codebook_size": 0}, ValueError, "codebook_size must be at least 1, got 0"),
        ({"hidden_channels": 1.5}, TypeError, "hidden_channels must be an int, got float"),
        ({"residual_blocks": -1}, ValueError, "residual_blocks must be at least 0, got -1"),
        ({"attention_heads": -1}, ValueError, "attention_heads must be at least 0, got -1"),
        ({"attention_heads": 3}, ValueError, "hidden_channels must be a multiple of 12"),
        ({"kernel_size": 4}, ValueError, "kernel_size must be odd, got 4"),
        ({"strides": ()}, ValueError, "strides must be one or more ints >= 2"),
        ({"strides": (1, 2)}, ValueError, r"got \[1, 2\]"),
        ({"time_strides": (1,)}, ValueError, r"None unless spatial_dims is 3, got \[1\]"),
        (
            {"time_strides": (1, 2), "spatial_dims": 3},
            ValueError,
            r"1 ints >= 1, one for each of strides, got \[1, 2\]",
        ),
        ({"time_strides": (0,), "spatial_dims": 3}, ValueError, r"ints >= 1.*got \[0\]"),
        ({"spatial_dims": 4}, ValueError, "spatial_dims must be 1, 2 or 3, got 4"),
        ({"quantizer": "rvq"}, ValueError, "quantizer must be one of vq, residual"),
        ({"codebooks": 0}, ValueError, "codebooks must be at least 1, got 0"),
        ({"codebooks": 3}, ValueError, "multiple of codebooks = 3, got 16"),
        ({"codebook_dim": 0}, ValueError, "codebook_dim must be at least 1, got 0"),
        ({"learning": "emo"}, ValueError, "did you mean 'ema'"),
        ({"decay": 1.5}, ValueError, r"decay must be in \[0, 1\), got 1.5"),
        ({"commitment_weight": -1.0}, ValueError, "commitment_weight must be in"),
        (
            {"learning": "gradient", "decay": 0.9},
            ValueError,
            "decay must be None for learning 'gradient', got 0.9",
        ),
        ({"quantizer": "residual"}, ValueError, "at least 2 for quantizer 'residual', got 1"),
        ({"quantizer": "lfq", "codebooks": 2}, ValueError, "must be 1 for quantizer 'lfq', got 2"),
        ({"quantizer": "lfq", "codebook_size": 60}, ValueError, "the next one is 64"),
        ({"quantizer": "bsq", "codebook_dim": 4}, ValueError, "None for quantizer 'bsq', got 4"),
        ({"quantizer": "simvq", "decay": 0.9}, ValueError, "None for quantizer 'simvq', got 0.9"),
        ({"quantizer": "simvq", "learning": "ema"}, ValueError, "learning must be None"),
        ({"quantizer": "fsq"}, ValueError, "fsq_levels must be given for quantizer 'fsq'"),
        (
            {"quantizer": "fsq", "fsq_levels": (5, 5)},
            ValueError,
            "codebook_size must be 25, the product of fsq_levels, got 64",
        ),
        (
            {"quantizer": "fsq", "fsq_levels": (32, 2)},
            ValueError,
            r"each of levels must be in \[3, 65536\], got 2",
        ),
        (
            {"quantizer": "fsq", "fsq_levels": (8, 8), "commitment_weight": 0.1},
            ValueError,
            "commitment_weight must be None for quantizer 'fsq', got 0.1",
        ),
        ({"fsq_levels": (8, 8)}, ValueError, r"None for quantizer 'vq', got \(8, 8\)"),
        ({"levels": 2}, ValueError, "levels must be None for likelihood 'mse'"),
    ],
)
def test_refused_configs(options, error, message):
    with pytest.raises(error, match=message):
        VQVAEConfig(**options)


def test_a_config_draws_no_random_numbers():
    state = torch.get_rng_state()
    VQVAEConfig(codebook_size=4096, attention_heads=2)
    assert torch.equal(torch.get_rng_state(), state)
