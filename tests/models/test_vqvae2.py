# SPDX-License-Identifier: Apache-2.0
"""The hierarchy of a VQ-VAE-2: order, shapes, what flows where."""

import json

import pytest
import torch

from fastvq.models import VQVAE2, VQVAE2Config

from .conftest import batch, make, started

THREE = ((2, 2), (2,), (3,))


def test_three_levels_from_the_top_down():
    model = started(make("VQVAE2", strides=THREE), 24, 48)
    assert model.config.stride == (24, 24)
    assert model.level_strides == ((24, 24), (8, 8), (4, 4))
    x = batch(model, 24, 48)
    grids = model.encode(x)
    assert [tuple(grid.shape) for grid in grids] == [(4, 1, 2), (4, 3, 6), (4, 6, 12)]
    assert model.decode(grids).shape == x.shape
    model(x).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("quantizer", ["vq", "vq-grouped", "residual", "lfq", "bsq", "simvq"])
def test_each_level_has_a_codebook_of_its_own_size(tmp_path, quantizer):
    sizes = {"codebook_size": 64, "codebook_sizes": (32, 4)}
    model = started(make("VQVAE2", quantizer, **sizes), 8, 8).eval()
    assert model.level_codebook_sizes == (4, 32)
    # G log2 K of 2x2 positions at the top and of 4x4 below
    books = model.config.codebooks
    assert model.nominal_bits(8, 8) == books * (4 * 2 + 16 * 5)
    x = batch(model, 8, 8)
    grids = model.encode(x)
    for level, size in enumerate(model.level_codebook_sizes):
        assert grids[level].max() < size
        # the largest code is one of the level's, the next is none
        edge = [torch.zeros_like(grid) for grid in grids]
        edge[level] += size - 1
        model.decode(tuple(edge))
        edge[level] += 1
        with pytest.raises(IndexError, match=f"K = {size}"):
            model.decode(tuple(edge))
    model.save_pretrained(tmp_path)
    loaded = VQVAE2.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded.reconstruct(x), model.reconstruct(x))


def test_a_model_saved_without_sizes_of_its_levels_loads(tmp_path):
    model = make("VQVAE2")
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    del document["config"]["codebook_sizes"]
    path.write_text(json.dumps(document))
    loaded = VQVAE2.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.level_codebook_sizes == (16, 16)


def pictures(examples=16):
    """Each of four flat quarters."""
    return torch.rand(examples, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)


@pytest.fixture(scope="module")
def trained():
    """A model whose codes of both levels are in use."""
    torch.manual_seed(0)
    # so short a training needs codes that keep up with the encoders
    model = make("VQVAE2", hidden_channels=16, decay=0.5)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(pictures()).loss.backward()
        optimizer.step()
    top, bottom = model.eval().encode(pictures(64))
    assert len(top.unique()) > 4
    assert len(bottom.unique()) > 4
    return model


def test_every_level_is_used(trained):
    model, x = trained, pictures()
    grids = model.encode(x)
    whole = model.decode(grids)
    for level in range(2):
        # -1 decodes to zeros
        without = tuple(g if i != level else torch.full_like(g, -1) for i, g in enumerate(grids))
        assert (model.decode(without) - whole).abs().mean() > 1e-3 * whole.abs().mean()


def test_the_lower_codes_depend_on_the_upper_ones(trained):
    """What the bottom quantizer sees is projected from the features and the decoded top."""
    model, x = trained, pictures()
    features = model.encoders[0](x)
    top, bottom = model.encode(x)

    def vectors(indices):
        decoded = model.decoders[1](model.quantizers[1].decode(indices))
        return model.projections[0](torch.cat([features, decoded], 1))

    seen = vectors(top)
    assert torch.equal(model.quantizers[0].encode(seen), bottom)
    assert not torch.equal(vectors((top + 5) % 16), seen)


def test_the_error_flows_straight_through_every_quantizer(trained):
    """Of the whole loss: the gradient is that of a model whose quantizers add a constant."""
    model, x = trained, pictures()
    parameters = [encoder.layers[0].weight for encoder in model.encoders]
    parameters += list(model.projections.parameters())
    found = torch.autograd.grad(model(x).reconstruction_loss, parameters)

    low = model.encoders[0](x)
    vectors = model.projections[1](model.encoders[1](low))
    with torch.no_grad():
        offset = model.quantizers[1](vectors).quantized - vectors
    above = vectors + offset
    decoded = model.decoders[1](above)
    vectors = model.projections[0](torch.cat([low, decoded], 1))
    with torch.no_grad():
        offset = model.quantizers[0](vectors).quantized - vectors
    result = model.decoders[0](torch.cat([vectors + offset, model.upsamplers[0](above)], 1))
    expected = torch.autograd.grad((result - x).square().mean(), parameters)
    for got, wanted in zip(found, expected, strict=True):
        assert wanted.norm() > 0
        # the same operations in float32
        assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_the_quantizers_losses_add_up(trained):
    model, x = trained, pictures()
    low = model.encoders[0](x)
    top = model.quantizers[1](model.projections[1](model.encoders[1](low)))
    decoded = model.decoders[1](top.quantized)
    bottom = model.quantizers[0](model.projections[0](torch.cat([low, decoded], 1)))
    torch.testing.assert_close(model(x).quantizer_loss, top.loss + bottom.loss)


def test_names_of_the_weights_stay():
    names = {name.rsplit(".", 1)[0] for name in VQVAE2(VQVAE2Config()).state_dict()}
    parts = {".".join(name.split(".")[:2]) for name in names}
    assert parts == {
        f"{part}.{level}"
        for part in ("encoders", "projections", "quantizers", "decoders")
        for level in (0, 1)
    } | {"upsamplers.0"}
    assert {
        "encoders.0.layers.4",
        "decoders.1.layers.4",
        "quantizers.0.book",
        "upsamplers.0.0",
    } <= names


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([(1, 2, 2)], "tuple of 2, the top first, got 1"),
        ([(1, 2, 2), (1, 2, 2)], r"one batch and one size.*got \[1, 2, 2\], \[1, 2, 2\]"),
        ([(1, 2, 2), (2, 4, 4)], "one batch and one size"),
        ([(1, 4, 4), (1, 2, 2)], "one batch and one size"),
        ([(1, 2, 2), (4, 4)], r"indices must have 3 dimensions, batch and grid, got \[4, 4\]"),
    ],
)
def test_refused_grids(grids, message):
    model = make("VQVAE2")
    with pytest.raises(ValueError, match=message):
        model.decode(tuple(torch.zeros(shape, dtype=torch.int64) for shape in grids))


def test_a_list_is_no_tuple():
    grid = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="grids must be a tuple of 2, the top first, got list"):
        make("VQVAE2").decode([grid, grid])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": ((2, 2),)}, "two levels or more, got 1; a VQVAE has one"),
        ({"strides": ((2,), ())}, "strides must be one or more ints >= 2"),
        ({"strides": ((2,), (1,))}, r"got \[1\]"),
        ({"time_strides": ((1,),), "spatial_dims": 3}, "time_strides must have 2 levels"),
        ({"time_strides": ((1, 1), (1,))}, "must be None unless spatial_dims is 3"),
        ({"codebook_sizes": (8, 8, 8)}, "codebook_sizes must have 2 levels as strides has, got 3"),
        ({"codebook_sizes": (8, 0)}, "each of codebook_sizes must be at least 1, got 0"),
        (
            {"codebook_sizes": (8, 4), "codebook_size": 8},
            "codebook_size must be left at 64 where codebook_sizes is given, got 8",
        ),
        (
            {
                "codebook_sizes": (25, 25),
                "quantizer": "fsq",
                "fsq_levels": (5, 5),
                "codebook_size": 25,
            },
            r"codebook_sizes must be None where fsq_levels is given, got \(25, 25\)",
        ),
        (
            {
                "codebook_sizes": (25, 25),
                "quantizer": "residual_fsq",
                "codebooks": 2,
                "fsq_levels": (5, 5),
            },
            r"codebook_sizes must be None where fsq_levels is given, got \(25, 25\)",
        ),
        ({"codebook_sizes": (8, 6), "quantizer": "lfq"}, "each of codebook_sizes: .*next one is 8"),
    ],
)
def test_refused_configs(options, message):
    with pytest.raises(ValueError, match=message):
        VQVAE2Config(**options)


@pytest.mark.parametrize("sizes", [[8, 4], 8])
def test_codebook_sizes_are_a_tuple(sizes):
    with pytest.raises(TypeError, match="codebook_sizes must be one of tuple"):
        VQVAE2Config(codebook_sizes=sizes)
